"""Straight from an Instruction Switch Dataset, paired up as `python -m ecliptica.isd build` does.

data.train is a bank (a JSONL file or a directory; empty: the shipped one) and gives the pairs of
its train split; data.eval those of the dev split, in that split's own wording.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ecliptica.config import option, positive, seed
from ecliptica.data.formats import cita
from ecliptica.data.settings import DataConfig
from ecliptica.isd.bank import BANK, INSTRUCTIONS, load_bank, load_instructions
from ecliptica.isd.hard import read_scores
from ecliptica.isd.pairs import pairs
from ecliptica.schema import Preference


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
    return [cita.read(record, record["id"]) for record in records]
