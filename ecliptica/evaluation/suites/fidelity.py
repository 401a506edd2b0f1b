"""Do generated answers show their instruction and answer their prompt? Reads what isd-generate
wrote; no model is loaded.

See metrics/generation_fidelity.py. The published fidelity, shift and M1 stand below, labelled as
such: metrics/published.py. Several wordings of a prompt are averaged. Conditions that isd-generate
made with --controls are a second table.

A bank without references, such as ECLIPTICA-30k: what needs none is measured, the published
scores against the texts of the instructions; apart by axis and kind where these have some.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from ecliptica.config import option
from ecliptica.evaluation import unreferenced
from ecliptica.evaluation.banks import AT_LEAST_ONE, SHIPPED
from ecliptica.evaluation.grid import MEANT
from ecliptica.evaluation.judge import Answered, Judge
from ecliptica.evaluation.metrics import generation_fidelity, loops, published
from ecliptica.evaluation.suites import Asked, Details, Study, Suite
from ecliptica.evaluation.written_answers import read_answers
from ecliptica.isd.bank import BANK, INSTRUCTIONS, load_bank, load_instructions
from model.errors import InputError

METRICS = (*generation_fidelity.METRICS, *loops.METRICS, *published.METRICS)


@dataclass(frozen=True)
class Options:
    data: str = option(..., "JSON lines that isd-generate wrote")
    bank: str = option(
        str(BANK),
        "the bank they were generated for; the classifier learns from its train split",
        default_text=SHIPPED["bank"],
    )
    instructions: str = option(
        str(INSTRUCTIONS),
        "TOML of id = [wordings], YAML or parquet",
        default_text=SHIPPED["instructions"],
    )
    limit: int | None = option(
        None, "only so many prompts: stamped as not reportable", AT_LEAST_ONE
    )


def prepare(options: Options) -> Study:
    texts = load_instructions(options.instructions)
    instructions = list(texts)
    bank = load_bank(options.bank, instructions)

    # What the answers are measured with: the bank's references, or what there is without.
    types = unreferenced.types_of(options.instructions)
    has_references = any(entry.responses for entry in bank)
    if has_references:
        judge = Judge(bank, instructions, options.bank)
        metrics = METRICS
    else:
        judge = unreferenced.TextJudge(bank, texts, types)
        metrics = unreferenced.METRICS
    systems = read_answers(options.data, {entry.id for entry in bank}, instructions)
    conditions = list(dict.fromkeys(name for own in systems.values() for name in own.conditions()))
    if MEANT not in conditions:
        raise InputError(
            f"{options.data}: no answer under the condition {MEANT!r}; run isd-generate without "
            "--controls into it first"
        )

    # The prompts, each in the wordings that it was answered in by anybody.
    places = list(dict.fromkeys(place for own in systems.values() for place in own.places()))
    prompts = list(dict.fromkeys(prompt for prompt, _ in places))[: options.limit]
    wordings = {prompt: [w for other, w in places if other == prompt] for prompt in prompts}
    for own in systems.values():
        own.check_whole(wordings, instructions)

    def units(condition: str) -> list[Answered]:
        return [Answered(judge, prompt, condition, tuple(wordings[prompt])) for prompt in prompts]

    ablated = any(own.ablation for own in systems.values())
    meant = units(MEANT)
    of_suite = partial(details, judge, instructions, prompts)
    if not has_references:
        of_suite = partial(by_group, judge, types, meant)
    return Study(
        units=meant,
        metrics=metrics,
        part_names=instructions,
        controls={name: units(name) for name in conditions if name != MEANT},
        details=of_suite,
        recorded=systems,
        record={"ablation": True} if ablated else {},
    )


def by_group(judge: unreferenced.TextJudge, types, units, asked: Asked) -> Details:
    """The same apart by axis and by kind."""
    note = (
        "The bank has no references: instructions are not recognised, and the published scores "
        "compare an answer with the texts of its instruction."
    )
    return Details(notes=[note], tables=unreferenced.tables(judge, types, units, asked))


def details(
    judge: Judge, instructions: Sequence[str], prompts: Sequence[str], asked: Asked
) -> Details:
    """How far the classifier itself is to be trusted."""
    more = {
        "instructions": list(instructions),
        "confusion": judge.confusion,
        "classifier_accuracy": judge.accuracy,
        "prompt_ids": list(prompts),
    }
    if judge.accuracy is None:
        note = "No references outside the train split: the classifier's own accuracy is unknown."
        return Details(more, [note])
    worst = min(judge.confusion, key=lambda name: judge.confusion[name][name])
    note = (
        f"The classifier names {judge.accuracy:.3f} of {len(judge.unseen) * len(instructions)} "
        f"references that it was not trained on rightly, least of all {worst} "
        f"({judge.confusion[worst][worst]:.2f})."
    )
    return Details(more, [note])


SUITE = Suite("fidelity", Options, prepare, lambda: METRICS, asks_systems=False)
