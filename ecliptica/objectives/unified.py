"""sft + lambda_1 * preference + lambda_2 * KL, paper section 1.

lambda_1 is preference_weight, lambda_2 is kl_weight, annealed.
"""

from dataclasses import dataclass

from ecliptica.config import not_negative, option
from ecliptica.objectives import kl, terms
from ecliptica.objectives.contract import Needs, Step, Terms
from ecliptica.schema import Rows


@dataclass(frozen=True)
class Config(kl.KLConfig, terms.PreferenceConfig, terms.RationaleConfig):
    """The section `objective` with objective.name = "unified"."""

    name: str = "unified"
    reference_free: bool = option(True, "drop the reference's log-probs from the margin")
    preference_weight: float = not_negative(1.0, "lambda_1, of the contrastive term")


RESPONSES = 2


def needs(config: Config) -> Needs:
    return Needs(
        reference=not config.reference_free,
        kl=kl.is_on(config),
        rationale=config.rationale_weight > 0,
    )


def loss(rows: Rows, config: Config, step: Step) -> Terms:
    sequences = rows.sequences()
    preference = terms.preference(sequences, config, config.reference_free)
    return terms.combine(
        terms.weighted(config.preference_weight, preference),
        terms.sft(sequences, config),
        terms.rationale(sequences, config),
        kl.term(rows, config, step),
    )
