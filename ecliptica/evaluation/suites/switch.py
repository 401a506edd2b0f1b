"""Does the instruction switch the behaviour? Joint, column accuracy, prompt match, switch and
strict switch, base and trained side by side.

Log-probs only, no judge. Controls: the base model under the same instructions (prompting only),
the instruction removed, the prompt scrambled. Writes results.json, samples.jsonl (every score,
resumable) and table.md into --out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np

from ecliptica.config import option
from ecliptica.evaluation import groups, statistics
from ecliptica.evaluation.banks import (
    WordedOptions,
    grid_metrics,
    in_one_wording,
    load_crossed,
    some_of,
)
from ecliptica.evaluation.grid import CONTROLS, MEANT, Cross, Grid, interaction, read_square
from ecliptica.evaluation.metrics import Metric
from ecliptica.evaluation.questions import Question
from ecliptica.evaluation.suites import Asked, Details, Study, Suite
from ecliptica.evaluation.systems import is_base_of
from model.errors import InputError


@dataclass(frozen=True)
class Options(WordedOptions):
    controls: tuple[str, ...] = option(
        CONTROLS, "conditions to add to the table, comma-separated; '' for none"
    )
    metrics: tuple[str, ...] = option(
        (), "which of the metrics, comma-separated", default_text="all"
    )
    families: str = option(
        "", "TOML of family = [ids]: values by family as well; shipped: the shipped one"
    )
    hold_out: tuple[str, ...] = option(
        (), "ids that training left out: their values and those of the others apart"
    )


def prepare(options: Options) -> Study:
    for name in options.controls:
        if name not in CONTROLS:
            raise InputError(f"--controls {name!r}: expected {', '.join(CONTROLS)}")
    metrics = grid_metrics()
    chosen = some_of(options.metrics, list(metrics), "--metrics") or list(metrics)
    crossed = load_crossed(options)
    wording = in_one_wording(options, crossed.instructions)

    by_group = {}
    if options.families:
        by_group["by family"] = groups.families(options.families, list(wording))
    if options.hold_out:
        by_group["held out and trained"] = groups.apart(options.hold_out, list(wording))
    falling_apart = [metrics[name] for name in chosen if metrics[name].parts]

    def crosses(condition: str) -> list[Cross]:
        return Grid(crossed.bank, crossed.entries, wording, condition).crosses

    units = crosses(MEANT)
    return Study(
        units=units,
        metrics=[metrics[name] for name in chosen],
        part_names=list(wording),
        controls={condition: crosses(condition) for condition in dict.fromkeys(options.controls)},
        details=partial(details, units, by_group, falling_apart),
        more_questions=partial(kl_of_first_trained, units),
    )


def details(
    crosses: Sequence[Cross],
    by_group: Mapping[str, groups.Groups],
    falling_apart: Sequence[Metric],
    asked: Asked,
) -> Details:
    """The wording, the matrix of instruction against response, groups of instructions, and the
    price in KL."""
    grid = crosses[0].grid
    more = {
        "instructions": grid.names,
        "wording": grid.wording,
        "prompt_ids": [cross.entry.id for cross in crosses],
        "interaction": {
            label: mean_interaction(crosses, own) for label, own in asked.answers.items()
        },
    }
    tables = []
    for title, members in by_group.items():
        more[title] = {"groups": {name: list(ids) for name, ids in members.items()}}
        for metric in falling_apart:
            values = groups.measured(members, metric, crosses, grid.names, asked)
            more[title][metric.name] = {
                label: {name: asdict(interval) for name, interval in own.items()}
                for label, own in values.items()
            }
            tables.append(groups.table(f"{metric.title}, {title}", values))
    notes = [f"{len(grid.names)} instructions, wording of the split."]
    for own in list(asked.answers.values())[1:2]:
        questions = own_references(crosses)
        if own.is_control or not all(own.knows(question) for question in questions):
            continue
        kl = mean_kl(own, questions, len(crosses), asked.drawn)
        more["kl"] = kl
        notes.append(
            "Exact KL[trained || base] on the reference responses: "
            f"{kl['per_response']:.2f} nats a response, {kl['per_token']:.4f} a token."
        )
    return Details(more, notes, tables)


def mean_interaction(crosses: Sequence[Cross], answers) -> list[list[float]]:
    """Mean over prompts of the log-probs with row and column means taken out, nats."""
    matrices = [interaction(read_square(cross, answers)) for cross in crosses]
    return np.mean(matrices, axis=0).round(3).tolist()


def own_references(crosses: Sequence[Cross]) -> list[Question]:
    """KL along every reference response, under its own instruction."""
    return [
        replace(cross.question(name, cross.entry, name), asked="kl")
        for cross in crosses
        for name in cross.names
    ]


def kl_of_first_trained(
    crosses: Sequence[Cross], number: int, system, control
) -> Sequence[Question]:
    """The first trained system is asked how far it went from the base it was trained on."""
    if number == 1 and is_base_of(control, system):
        return own_references(crosses)
    return ()


def mean_kl(
    answers, questions: Sequence[Question], prompts: int, drawn: np.ndarray
) -> dict[str, object]:
    """Exact KL[trained || base] on the reference responses, nats; the interval of a response's."""
    kls = [answers[question] for question in questions]
    tokens = sum(answers.tokens(question) for question in questions)
    per_prompt = np.array(kls).reshape(prompts, -1).mean(1)
    return {
        "per_response": sum(kls) / len(kls),
        "per_token": sum(kls) / tokens,
        "interval": statistics.summary(per_prompt, drawn),
    }


SUITE = Suite("switch", Options, prepare, lambda: list(grid_metrics().values()))
