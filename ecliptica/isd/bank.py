"""The Instruction Switch Dataset: prompts crossed with alignment instructions, and the responses that each pair should get."""

import random
import tomllib
from dataclasses import dataclass
from pathlib import Path

from ecliptica.data.jsonl import records, text
from model.errors import InputError

HERE = Path(__file__).parent
BANK, INSTRUCTIONS, SAFETY = HERE / "bank.jsonl", HERE / "instructions.toml", HERE / "safety.jsonl"
SECOND_BANK = HERE / "bank_second.jsonl"  # three other domains, by another hand: for --bank
SPLITS = ("train", "dev", "test")
PARAPHRASE = {"train": 0, "dev": 1, "test": 2}  # a test context never has a wording that was trained on


@dataclass(frozen=True)
class Entry:
    id: str
    prompt: str
    domain: str
    split: str
    responses: dict[str, str]  # instruction id -> reference response


def load_instructions(path=INSTRUCTIONS):
    """{instruction id: paraphrases}, in file order. Raises InputError unless each has the same number, at least one."""
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; expected TOML of instruction id = [paraphrases]") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from error
    for name, paraphrases in table.items():
        if not isinstance(paraphrases, list) or not paraphrases or not all(isinstance(p, str) and p.strip() for p in paraphrases):
            raise InputError(f"{path}: {name} must be a list of at least one instruction text")
    if len(table) < 2:
        raise InputError(f"{path}: {len(table)} instructions; switching needs at least two")
    return {name: tuple(paraphrases) for name, paraphrases in table.items()}


def load_bank(path=BANK, instructions=None):
    """[Entry] of a JSONL bank: {"id", "prompt", "domain", "split", "responses": {instruction id: text}}."""
    entries = records(path, lambda record, where: _entry(record, where, instructions))
    seen = set()
    for entry in entries:
        if entry.id in seen:
            raise InputError(f"{path}: the id {entry.id!r} occurs twice; ids name prompts in every result")
        seen.add(entry.id)
    return entries


def _entry(record, where, instructions):
    responses = record.get("responses")
    if not isinstance(responses, dict):
        raise InputError(f"{where}: 'responses' must be an object of instruction id to text")
    for name in responses:
        if instructions is not None and name not in instructions:
            raise InputError(f"{where}: responses has the instruction id {name!r}; the instructions file has {', '.join(instructions)}")
        text(responses, name, where)
    split = text(record, "split", where)
    if split not in SPLITS:
        raise InputError(f"{where}: 'split' must be one of {', '.join(SPLITS)}, got {split!r}")
    return Entry(text(record, "id", where), text(record, "prompt", where), text(record, "domain", where), split, responses)


def pairs(entries, instructions, split, seed=0, rounds=1):
    """Contrastive preferences of a split, as `cita` records, half of each kind of rejected response:

    sibling: the response to the same prompt under another instruction; prompt: the response to another prompt under the
    same instruction, which is what stops a model from ignoring the prompt. In every round each response is chosen twice
    and rejected twice (permutations without a fixed point), so that no response is good or bad in itself.
    """
    generator = random.Random(f"{seed} {split}")
    chosen_entries = [entry for entry in entries if entry.split == split]
    names, made = list(instructions), []
    for number in range(rounds):
        sibling = {entry.id: _derangement(names, generator) for entry in chosen_entries}
        other = {name: _derangement(chosen_entries, generator) for name in names}
        for at, entry in enumerate(chosen_entries):
            for k, name in enumerate(names):
                wrong = sibling[entry.id][k], entry
                for kind, (rejected_name, rejected_entry) in (("sibling", wrong), ("prompt", (name, other[name][at]))):
                    made.append({
                        "id": f"{entry.id}/{name}/{kind}-{number}", "instruction": instructions[name][PARAPHRASE[split]],
                        "prompt": entry.prompt, "chosen": entry.responses[name],
                        "rejected": rejected_entry.responses[rejected_name],
                    })
    generator.shuffle(made)
    return made


def _derangement(items, generator):
    """A cyclic shift of a random order: a permutation that leaves nothing in its place."""
    order = generator.sample(range(len(items)), len(items))
    image = {order[i]: order[(i + 1) % len(order)] for i in range(len(order))}
    return [items[image[i]] for i in range(len(items))]
