"""CITA-KL, paper section 6: -log P+ + lambda KL[policy || reference], P+ = softmax over (beta s+, beta s-).

The two-way softmax is sigmoid(beta (s+ - s-)), so this is `unified` without its SFT term. lambda > 0 is mandatory.
"""

from dataclasses import dataclass

from ecliptica.config import option
from ecliptica.objectives import terms, unified
from model.errors import InputError


@dataclass(frozen=True)
class Config(terms.KLConfig, terms.PreferenceConfig):
    """The section `objective` with objective.name = "cita"."""

    name: str = "cita"
    reference_free: bool = option(True, "drop the reference's log-probs from the margin")

    def check(self) -> None:
        """lambda > 0 is mandatory, but for an ablation."""
        if self.ablation:
            return
        lifts = "objective.ablation=true lifts this and is stamped on every output"
        if self.kl == "none":
            raise InputError(f"objective.kl: cita's KL is mandatory, got 'none'; {lifts}")
        for key in ("kl_weight_start", "kl_weight_end"):
            value = getattr(self, key)
            if value <= 0:
                raise InputError(
                    f"objective.{key}: expected > 0, got {value}; cita's KL is mandatory "
                    f"(the paper anneals 0.01 to 0.1); {lifts}"
                )


RESPONSES = 2
needs_reference = unified.needs_reference


def loss(stats, config, kl_weight):
    return unified.loss(stats, config, kl_weight, sft_weight=0.0, preference_weight=1.0)
