"""ITA: supervised fine-tuning on the chosen response. With data.contrastive, on contrastive ITA (paper 4.2)."""

from dataclasses import dataclass

from ecliptica.config import choice
from ecliptica.objectives import terms


@dataclass(frozen=True)
class Config:
    """The section `objective` with objective.name = "sft"."""

    name: str = "sft"
    logp: str = choice("sum", ("sum", "mean"), "of a response: mean is normalised by its length")


RESPONSES = 1


def needs_reference(config):
    return False


def loss(stats, config, kl_weight):
    return terms.combine((1.0, terms.sft(stats, config)))
