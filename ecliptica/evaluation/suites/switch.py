"""Does the instruction switch the behaviour? Joint, column accuracy, prompt match, switch and
strict switch, base and trained side by side.

Log-probs only, no judge. Controls: the base model under the same instructions (prompting only),
the instruction removed, the prompt scrambled. Writes results.json, samples.jsonl (every score,
resumable) and table.md into --out.

--responses-per-prompt 4: of each prompt only four of its responses are asked, drawn once, each
equally often (design.py); column accuracy still has every instruction as a candidate. For the
same minutes twice the prompts, hence narrower intervals. --controls trained: the conditions are
asked of the trained systems alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ecliptica.config import Rule, option, seed
from ecliptica.evaluation import design, groups, statistics
from ecliptica.evaluation.banks import (
    Crossed,
    WordedOptions,
    grid_metrics,
    in_one_wording,
    load_crossed,
    some_of,
)
from ecliptica.evaluation.grid import CONTROLS, MEANT, Cross, Grid, interaction, read_columns
from ecliptica.evaluation.metrics import Metric
from ecliptica.evaluation.questions import Question
from ecliptica.evaluation.suites import Asked, Details, Study, Suite
from model.errors import InputError

TRAINED_ONLY = "trained"  # a word of --controls: not of the control system
AT_LEAST_TWO = Rule(">= 2: switch compares pairs", lambda value: value >= 2)


@dataclass(frozen=True)
class Options(WordedOptions):
    controls: tuple[str, ...] = option(
        CONTROLS,
        "conditions to add to the table, comma-separated; '' for none; trained (alone, or with "
        "conditions): of the trained systems only",
    )
    responses_per_prompt: int | None = option(
        None,
        "ask so many responses of each prompt, drawn once, each equally often",
        AT_LEAST_TWO,
        default_text="all",
    )
    design_seed: int = seed(0, "of that draw")
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
    conditions = conditions_of(options)
    metrics = grid_metrics()
    chosen = some_of(options.metrics, list(metrics), "--metrics") or list(metrics)
    crossed = load_crossed(options)
    wording = in_one_wording(options, crossed.instructions)

    asked = asked_of(options, crossed)
    by_group = {}
    if options.families:
        by_group["by family"] = groups.families(options.families, list(wording))
    if options.hold_out:
        by_group["held out and trained"] = groups.apart(options.hold_out, list(wording))
    falling_apart = [metrics[name] for name in chosen if metrics[name].parts]

    def crosses(condition: str) -> list[Cross]:
        return Grid(crossed.bank, crossed.entries, wording, condition, asked=asked).crosses

    units = crosses(MEANT)
    return Study(
        units=units,
        metrics=[metrics[name] for name in chosen],
        part_names=list(wording),
        controls={condition: crosses(condition) for condition in conditions},
        controls_of_control=TRAINED_ONLY not in options.controls,
        details=partial(details, units, by_group, falling_apart),
        more_questions=partial(kl_of_first_trained, units),
    )


def conditions_of(options: Options) -> list[str]:
    """The conditions that --controls names; all, if it says no more than of whom."""
    named = [name for name in options.controls if name != TRAINED_ONLY]
    for name in named:
        if name not in CONTROLS:
            raise InputError(
                f"--controls {name!r}: expected {', '.join(CONTROLS)}, or {TRAINED_ONLY}"
            )
    if not named and options.controls:
        named = CONTROLS
    return list(dict.fromkeys(named))


def asked_of(options: Options, crossed: Crossed) -> dict[str, tuple[str, ...]] | None:
    """{prompt id: the responses that are asked}; None: all."""
    each = options.responses_per_prompt
    names = list(crossed.instructions)
    if each is None or each == len(names):
        return None
    if each > len(names):
        raise InputError(
            f"--responses-per-prompt {each}: a prompt has {len(names)} responses; leave it out for "
            "all of them"
        )
    ids = [entry.id for entry in crossed.entries]
    return design.drawn(ids, names, each, options.design_seed)


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
        "asked": {cross.entry.id: list(cross.asked) for cross in crosses if grid.asked},
        "interaction": mean_interactions(crosses, asked.answers),
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
    if grid.asked:
        notes.append(
            f"{len(crosses[0].asked)} of the {len(grid.names)} responses to each prompt were "
            "asked, drawn at random, each equally often; column accuracy has all "
            f"{len(grid.names)} instructions as candidates."
        )
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


def mean_interactions(
    crosses: Sequence[Cross], answers: Mapping[str, Any]
) -> dict[str, list[list[float]]]:
    """{label: matrix}: mean over prompts of the log-probs with row and column means taken out,
    nats.

    In an incomplete design each cell is the mean over the prompts that were asked it; nothing
    where a response was asked of no prompt.
    """
    asked = {name for cross in crosses for name in cross.asked}
    if asked < set(crosses[0].names):
        return {}
    return {label: mean_interaction(crosses, own) for label, own in answers.items()}


def mean_interaction(crosses: Sequence[Cross], answers) -> list[list[float]]:
    """Of one system."""
    names = crosses[0].names
    total_JK = np.zeros((len(names), len(names)))
    count_K = np.zeros(len(names))
    for cross in crosses:
        own = cross.rows_of_asked()
        s_JK = read_columns(cross, answers)
        total_JK[:, own] += s_JK - s_JK.mean(0)
        count_K[own] += 1
    return interaction(total_JK / count_K).round(3).tolist()


def own_references(crosses: Sequence[Cross]) -> list[Question]:
    """KL along every reference response, under its own instruction."""
    return [
        replace(cross.question(name, cross.entry, name), asked="kl")
        for cross in crosses
        for name in cross.asked
    ]


def kl_of_first_trained(
    crosses: Sequence[Cross], number: int, system, control
) -> Sequence[Question]:
    """The first trained system is asked how far it went from the base it was trained on."""
    # Not above: torch is not loaded for the help of a suite.
    from ecliptica.evaluation.systems import is_base_of

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
