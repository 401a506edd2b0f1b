"""Straight from an Instruction Switch Dataset, paired up as `python -m ecliptica.isd build` does.

data.train is a bank (a JSONL file or a directory; empty: the shipped one) and gives the pairs of
its train split; data.eval those of the dev split, in that split's own wording.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ecliptica.config import option, positive, seed, share
from ecliptica.data import corrections
from ecliptica.data.formats import cita
from ecliptica.data.settings import DataConfig
from ecliptica.isd.bank import BANK, INSTRUCTIONS, load_bank, load_instructions, own_wording
from ecliptica.isd.hard import read_scores
from ecliptica.isd.pairs import pairs
from ecliptica.schema import Preference
from model.errors import InputError


@dataclass(frozen=True)
class Config(DataConfig):
    """The section `data` of a recipe with data.format = "isd"; train is a bank, or empty."""

    isd_instructions: str = option("", "TOML of instructions; empty: the shipped ones")
    isd_rounds: int = positive(1, "how often a response is chosen against a rejected one of a kind")
    isd_seed: int = seed(0, "of the pairing")
    isd_scores: str = option(
        "", "samples.jsonl of `eval.py switch --split train`: adds the hardest wrong responses"
    )
    isd_system: str = option("", "whose scores in that file; empty: the last")
    corrections: float = share(
        0.0, "of the preferences at the end of a conversation that corrects the instruction"
    )


def read_file(path: str, config: Config, split: str) -> Sequence[Preference]:
    """The preferences of a split. Raises InputError.

    Hard negatives are for the train split alone, which the scores are of.
    """
    instructions = load_instructions(config.isd_instructions or INSTRUCTIONS)
    bank = load_bank(path or BANK, instructions)
    scores = None
    if config.isd_scores and split == "train":
        scores, _ = read_scores(config.isd_scores, list(instructions), config.isd_system or None)
    records = pairs(bank, instructions, split, config.isd_seed, config.isd_rounds, scores)
    preferences = [cita.read(record, record["id"]) for record in records]
    if not config.corrections:
        return preferences
    if not config.use_instruction:
        raise InputError(
            "data.corrections: a conversation holds the instruction, and data.use_instruction is "
            "false; leave one of the two out"
        )
    entries = [entry for entry in bank if entry.split == split and entry.responses]
    texts = {name: own_wording(split, wordings) for name, wordings in instructions.items()}
    source = corrections.Source(entries, texts)
    place = f"{config.isd_seed} {split}"
    return corrections.with_histories(preferences, source, config.corrections, place)
