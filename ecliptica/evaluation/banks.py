"""What the suites of the bank share: their options, and the prompts and instructions these name."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ecliptica.config import Rule, choice, option
from ecliptica.evaluation.grid import MEANT
from ecliptica.evaluation.metrics import Metric, reading
from ecliptica.evaluation.written_answers import read_answers
from ecliptica.isd.bank import (
    BANK,
    INSTRUCTIONS,
    SPLITS,
    WORDING,
    Entry,
    load_bank,
    load_instructions,
)
from model.errors import InputError

AT_LEAST_ONE = Rule(">= 1", lambda value: value >= 1)
SHIPPED = {"bank": "the shipped bank", "instructions": "the shipped ones"}


@dataclass(frozen=True)
class BankOptions:
    """Of every suite that measures prompts of a bank."""

    bank: str = option(
        str(BANK), "JSON lines, a directory of them, or parquet", default_text=SHIPPED["bank"]
    )
    instructions: str = option(
        str(INSTRUCTIONS),
        "TOML of id = [wordings], YAML or parquet",
        default_text=SHIPPED["instructions"],
    )
    split: str = choice("test", SPLITS, "which prompts")
    limit: int | None = option(
        None, "only so many prompts: a quick look, stamped as not reportable", AT_LEAST_ONE
    )
    answers: str | None = option(
        None,
        "JSON lines of isd-generate: the first system's answers stand for reference responses",
    )


@dataclass(frozen=True)
class WordedOptions(BankOptions):
    """Of those that say the instructions in one wording."""

    wording: int | None = option(
        None,
        "which wording, from 1",
        other_flags=("--paraphrase",),
        default_text="train 1, dev 2, test 3",
    )


@dataclass(frozen=True)
class Crossed:
    """Prompts and the instructions that they have responses to."""

    bank: Sequence[Entry]  # all of it: where distractors come from
    entries: Sequence[Entry]  # the units
    instructions: dict[str, tuple[str, ...]]  # their wordings


def load_crossed(options: BankOptions) -> Crossed:
    """The prompts of the split that have references, and the instructions these answer.

    Raises InputError where nothing can be compared, or prompts answer different instructions.
    """
    instructions = load_instructions(options.instructions)
    bank = load_bank(options.bank, instructions)
    if options.answers:
        bank = with_answers(bank, options.answers, list(instructions))
    split = [entry for entry in bank if entry.split == options.split]
    if not split:
        raise no_prompt(options.bank, options.split, bank)
    entries = [entry for entry in split if entry.responses][: options.limit]
    if not entries:
        raise InputError(
            f"{options.bank}: no prompt of the split {options.split!r} has reference responses; "
            "for a bank without them give the answers that isd-generate wrote as --answers"
        )
    names = [name for name in instructions if name in entries[0].responses]
    for entry in entries:
        if set(entry.responses) != set(names) or len(names) < 2:
            raise InputError(
                f"{options.bank}: {entry.id} has responses to {len(entry.responses)} instructions; "
                "every prompt of the split needs the same ones, at least two (the first has "
                f"{', '.join(names)})"
            )
    if len(bank) < 2:
        raise InputError(
            f"{options.bank}: one prompt; prompt match needs at least one other to tell it from"
        )
    return Crossed(bank, entries, {name: instructions[name] for name in names})


def with_answers(bank: Sequence[Entry], path: str, instructions: Sequence[str]) -> list[Entry]:
    """The bank with answers of a model for responses: those of the first system of the file, to
    each prompt that it has answered under every instruction, in the first wording there is.

    Raises InputError for an answer that is empty, which no likelihood is measured of.
    """
    prompts = {entry.id for entry in bank}
    first = next(iter(read_answers(path, prompts, instructions).values()))
    responses: dict[str, dict[str, str]] = {}
    for (condition, prompt, _), lines in first.lines.items():
        if condition != MEANT or set(lines) != set(instructions):
            continue
        texts = {name: line["r"] for name, line in lines.items()}
        empty = [name for name, text in texts.items() if not text.strip()]
        if empty:
            raise InputError(
                f"{path}: the answer of {first.label} to {prompt} under {empty[0]} is empty; it "
                "cannot stand for a response: leave the prompt out, or generate another"
            )
        responses.setdefault(prompt, texts)
    return [replace(entry, responses=responses.get(entry.id, {})) for entry in bank]


def no_prompt(path: str, split: str, bank: Sequence[Entry]) -> InputError:
    splits = ", ".join(sorted({entry.split for entry in bank}))
    return InputError(f"{path}: no prompt in the split {split!r}; it has {splits}")


def in_one_wording(
    options: WordedOptions, instructions: dict[str, tuple[str, ...]]
) -> dict[str, str]:
    """{instruction id: its text} in the wording that was asked for, or the split's own, or the
    last that there is."""
    texts = {}
    for name, wordings in instructions.items():
        number = options.wording
        if number is None:
            number = min(WORDING[options.split], len(wordings))
        if not 1 <= number <= len(wordings):
            raise InputError(f"--wording {number}: {name} has {len(wordings)} wordings")
        texts[name] = wordings[number - 1]
    return texts


def at_least_two_wordings(options: BankOptions, crossed: Crossed, why: str) -> int:
    """How many wordings every instruction has. InputError where that is one."""
    count = min(len(wordings) for wordings in crossed.instructions.values())
    if count < 2:
        raise InputError(f"{options.instructions}: an instruction has one wording; {why}")
    return count


def numbers(texts: Sequence[str], option_name: str) -> list[int]:
    """Whole numbers of an option such as --sizes 10,20. Raises InputError."""
    try:
        return [int(text) for text in texts]
    except ValueError as error:
        given = ",".join(map(str, texts))
        raise InputError(
            f"{option_name} {given}: expected whole numbers, comma-separated"
        ) from error


def some_of(names: Sequence[str], known: Sequence[str], option_name: str) -> list[str]:
    """Names without repetition, in their order. InputError for one that there is not."""
    for name in names:
        if name not in known:
            raise InputError(f"{option_name} {name!r}: expected some of {', '.join(known)}")
    return list(dict.fromkeys(names))


# Metrics of the grid

FIRST = ("joint", "column_accuracy", "prompt_match", "switch", "strict_switch")


def grid_metrics() -> dict[str, Metric]:
    """All metrics that read a grid: the switching metrics in the order of their table, then
    whichever there are beside them."""
    known = reading("grid")
    first = {name: known.pop(name) for name in FIRST if name in known}
    return first | known


def falling_apart(name: str) -> Metric:
    """The metric of the grid that --metric names, among those that fall apart by instruction."""
    known = {name: metric for name, metric in grid_metrics().items() if metric.parts}
    if name not in known:
        raise InputError(f"--metric: expected one of {', '.join(known)}, got {name!r}")
    return known[name]


METRIC_HELP = "joint, column_accuracy, or another metric that falls apart by instruction"
