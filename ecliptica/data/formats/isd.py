"""Straight from an Instruction Switch Dataset, paired up as `python -m ecliptica.isd build` does.

data.train is a bank (a JSONL file or a directory; empty: the shipped one) and gives the pairs of
its train split; data.eval those of the dev split, in that split's own wording.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ecliptica.config import option, positive, seed, share
from ecliptica.data import histories
from ecliptica.data.formats import cita
from ecliptica.data.settings import DataConfig
from ecliptica.isd.bank import (
    BANK,
    FAMILIES,
    INSTRUCTIONS,
    load_bank,
    load_families,
    load_instructions,
    own_wording,
    without,
)
from ecliptica.isd.hard import read_scores
from ecliptica.isd.pairs import DEFAULT, Families, Pairing, pairs
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
    isd_negatives: tuple[str, ...] = option(
        DEFAULT, "kinds of rejected responses: sibling, hard (with isd_scores), prompt, random"
    )
    isd_families: str = option(
        "", "TOML of family = [ids]: one instruction drawn from each; shipped: the shipped one"
    )
    isd_hold_out: tuple[str, ...] = option((), "ids of instructions to leave out of training")
    corrections: float = share(
        0.0, "of the preferences at the end of a conversation that corrects the instruction"
    )

    def check(self) -> None:
        """Hard ones have a key of their own; a history holds the instruction. Raises InputError."""
        Pairing(negatives=self.isd_negatives).kinds(self.isd_scores or None)
        if self.corrections and not self.use_instruction:
            raise InputError(
                "data.corrections: a conversation holds the instruction, and data.use_instruction "
                "is false; leave one of the two out"
            )


def read_file(path: str, config: Config, split: str) -> Sequence[Preference]:
    """The preferences of a split. Raises InputError.

    Hard negatives are for the train split alone, which the scores are of.
    """
    everything = load_instructions(config.isd_instructions or INSTRUCTIONS)
    bank = load_bank(path or BANK, everything)
    instructions = without(everything, config.isd_hold_out)
    scores = None
    negatives = config.isd_negatives
    if config.isd_scores and split == "train":
        scores, _ = read_scores(config.isd_scores, list(instructions), config.isd_system or None)
    else:
        negatives = [name for name in negatives if name != "hard"]
    families = None
    if config.isd_families:
        place = FAMILIES if config.isd_families == "shipped" else config.isd_families
        families = of_trained(load_families(place, everything), instructions, str(place))
    pairing = Pairing(config.isd_seed, config.isd_rounds, negatives, families)
    records = pairs(bank, instructions, split, pairing, scores)
    preferences = [cita.read(record, record["id"]) for record in records]
    if not config.corrections:
        return preferences
    entries = [entry for entry in bank if entry.split == split and entry.responses]
    texts = {name: own_wording(split, wordings) for name, wordings in instructions.items()}
    source = histories.Source(entries, texts)
    return histories.with_histories(
        preferences, source, config.corrections, f"{config.isd_seed} {split}"
    )


def of_trained(families: Families, instructions: Collection[str], where: str) -> Families:
    """The families without the instructions that are held out. Raises InputError for one of which
    nothing is left."""
    left = {}
    for family, members in families.items():
        left[family] = [name for name in members if name in instructions]
        if not left[family]:
            raise InputError(
                f"{where}: data.isd_hold_out leaves no instruction of the family {family}; take "
                "the family out of the file"
            )
    return left
