"""CITA-KL, paper section 6: -log P+ + lambda KL[policy || reference].

P+ is the softmax over (beta s+, beta s-); of two it is sigmoid(beta (s+ - s-)), so this is
`unified` without its SFT term. lambda > 0 is mandatory.
"""

from dataclasses import dataclass

from ecliptica.config import option
from ecliptica.objectives import kl, terms
from ecliptica.objectives.contract import Needs, Step, Terms
from ecliptica.schema import Rows
from model.errors import InputError


@dataclass(frozen=True)
class Config(kl.KLConfig, terms.PreferenceConfig, terms.RationaleConfig):
    """The section `objective` with objective.name = "cita"."""

    name: str = "cita"
    reference_free: bool = option(True, "drop the reference's log-probs from the margin")

    def check(self) -> None:
        """lambda > 0 is mandatory, but for an ablation."""
        if self.ablation:
            return
        lifts = "objective.ablation=true lifts this and is stamped on every output"
        if not kl.is_on(self):
            raise InputError(f"objective.kl: cita's KL is mandatory, got {self.kl!r}; {lifts}")
        for key in ("kl_weight_start", "kl_weight_end"):
            value = getattr(self, key)
            if value <= 0:
                raise InputError(
                    f"objective.{key}: expected > 0, got {value}; cita's KL is mandatory "
                    f"(the paper anneals 0.01 to 0.1); {lifts}"
                )


RESPONSES = 2


def needs(config: Config) -> Needs:
    return Needs(
        reference=not config.reference_free,
        kl=kl.is_on(config),
        rationale=config.rationale_weight > 0,
    )


def loss(rows: Rows, config: Config, step: Step) -> Terms:
    sequences = rows.sequences()
    return terms.combine(
        terms.preference(sequences, config, config.reference_free),
        terms.rationale(sequences, config),
        kl.term(rows, config, step),
    )
