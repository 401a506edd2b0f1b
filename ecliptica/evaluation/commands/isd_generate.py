"""Answers of a model to the whole grid, prompts x instructions x wordings: (p, i, r), and each
answer beside its contrastive ones.

--out is append-only, a line an answer: killed at any point and started again it goes on where it
was (evaluation/ledger.py). When all are there, a second step writes OUT.pairs.jsonl: every aligned
answer with those to the same prompt under the other instructions. `fidelity` reads --out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecliptica.config import choice, option
from ecliptica.evaluation.banks import AT_LEAST_ONE, SHIPPED, no_prompt, numbers, some_of
from ecliptica.evaluation.grid import CONTROLS, MEANT, NO_INSTRUCTION, SCRAMBLED, dealt_wrongly
from ecliptica.evaluation.ledger import Answering, Ledger
from ecliptica.evaluation.options import BASE, Compared, SamplingOptions
from ecliptica.evaluation.questions import Question
from ecliptica.files import check_writable, write_lines
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

# The first instruction's text under every instruction's name: how answers differ that ought not to.
SAME = "one instruction"
CONDITIONS = (*CONTROLS, SAME)
Line = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Options(SamplingOptions, Compared):
    out: str = option(..., "JSON lines to write; what it has already is not generated again")
    bank: str = option(
        str(BANK), "JSON lines, a directory of them, or parquet", default_text=SHIPPED["bank"]
    )
    instructions: str = option(
        str(INSTRUCTIONS),
        "TOML of id = [wordings], YAML or parquet",
        default_text=SHIPPED["instructions"],
    )
    split: str = choice("test", (*SPLITS, "all"), "which prompts")
    limit: int | None = option(None, "only so many prompts: a quick look", AT_LEAST_ONE)
    wordings: tuple[str, ...] = option(
        (), "which, from 1, comma-separated; all: 1,2,3", default_text="the split's own"
    )
    system: str = choice(
        "both", ("base", "trained", "both"), "whose answers, where there is an adapter"
    )
    controls: tuple[str, ...] = option(
        (), f"conditions to generate as well, comma-separated: {', '.join(CONDITIONS)}"
    )


def run(options: Options) -> None:
    # Everything that can be wrong before a model is looked for.
    instructions = load_instructions(options.instructions)
    bank = load_bank(options.bank)
    entries = [entry for entry in bank if options.split in (entry.split, "all")]
    entries = entries[: options.limit]
    if not entries:
        raise no_prompt(options.bank, options.split, bank)
    questions = []
    for condition in (MEANT, *some_of(options.controls, CONDITIONS, "--controls")):
        questions += grid(options, condition, bank, entries, instructions)
    check_writable(options.out, "--out")
    check_writable(pairs_path(options.out), "--out")
    ledger = Ledger(options.out)

    lines = []
    asked = chosen(options)
    for label, system in asked.items():
        answers = ledger.ask(system, label, questions)
        lines += [answers[question] | {"system": label} for question in questions]
    write_pairs(options.out, lines)
    cut = sum(line["truncated"] for line in lines)
    print(
        f"{options.out}: {len(lines)} answers of {', '.join(asked)} to {len(entries)} prompts; "
        f"{cut} cut at {options.max_new_tokens} tokens\n"
        f"{pairs_path(options.out)}: each with its contrastive ones"
    )


def chosen(options: Options) -> dict[str, Answering]:
    """The systems that --system names. Raises InputError, before one is loaded, for a trained one
    that there is not."""
    several = options.adapter or options.base or options.also
    if options.system == "trained" and not several:
        raise InputError(
            "--system trained: give the trained one as --adapter, or its control as --base"
        )
    # Only now what takes seconds to import.
    from ecliptica.evaluation.systems import compared

    loaded = compared(options)
    if options.system == "both":
        return loaded
    base = options.system == "base"
    return {label: system for label, system in loaded.items() if (label == BASE) == base}


def grid(
    options: Options,
    condition: str,
    bank: Sequence[Entry],
    entries: Sequence[Entry],
    instructions: dict[str, tuple[str, ...]],
) -> list[Question]:
    """Every prompt in its wordings under all instructions: these are one group, the same whatever
    --split, --limit and --wordings take (evaluation/answers.py)."""
    prompts = {entry.id: entry.prompt for entry in bank}
    if condition == SCRAMBLED:
        prompts = dealt_wrongly(bank)
    first = next(iter(instructions.values()))
    most = min(map(len, instructions.values()))
    questions = []
    for entry in entries:
        for number in wordings_of(options, entry, most):
            for name, own in instructions.items():
                texts = first if condition == SAME else own
                text = None if condition == NO_INSTRUCTION else texts[number - 1]
                names = {
                    "condition": condition,
                    "prompt": entry.id,
                    "instruction": name,
                    "wording": number,
                }
                questions.append(
                    Question(
                        prompts[entry.id],
                        text,
                        asked="answer",
                        sampling=options.sampling,
                        names=names,
                    )
                )
    return questions


def wordings_of(options: Options, entry: Entry, most: int) -> list[int]:
    """Which wordings of the instructions, from 1."""
    if not options.wordings:
        return [min(WORDING[entry.split], most)]
    chosen = sorted(set(numbers(options.wordings, "--wordings")))
    if chosen[0] < 1 or chosen[-1] > most:
        given = ",".join(map(str, options.wordings))
        raise InputError(f"--wordings {given}: the instructions have wordings 1 to {most}")
    return chosen


def pairs_path(out: str) -> Path:
    path = Path(out)
    return path.with_name(f"{path.name.removesuffix('.jsonl')}.pairs.jsonl")


def write_pairs(out: str, lines: Sequence[Line]) -> None:
    """OUT.pairs.jsonl: each line with "contrastive", {instruction: answer} of the same system to
    the same prompt and wording."""

    def place(line: Line) -> tuple:
        return tuple(line[name] for name in ("system", "condition", "prompt", "wording"))

    by_place = {}
    for line in lines:
        by_place.setdefault(place(line), {})[line["instruction"]] = line["r"]
    pairs = []
    for line in lines:
        others = dict(by_place[place(line)])
        del others[line["instruction"]]
        pairs.append(line | {"contrastive": others})
    write_lines(pairs_path(out), pairs)
