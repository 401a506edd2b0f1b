"""ITA: supervised fine-tuning on the chosen response, -log pi(Y+ | I, X).

With data.contrastive, on contrastive ITA (paper 4.2).
"""

from dataclasses import dataclass

from ecliptica.config import choice
from ecliptica.objectives import terms
from ecliptica.objectives.contract import Needs, Step, Terms
from ecliptica.schema import Rows


@dataclass(frozen=True)
class Config:
    """The section `objective` with objective.name = "sft"."""

    name: str = "sft"
    logp: str = choice("sum", ("sum", "mean"), "of a response: mean is normalised by its length")


RESPONSES = 1


def needs(config: Config) -> Needs:
    return Needs()


def loss(rows: Rows, config: Config, step: Step) -> Terms:
    return terms.combine(terms.sft(rows.sequences(), config))
