"""CITA-KL, paper section 6: -log P+ + lambda KL[policy || reference], P+ = softmax over (beta s+, beta s-).

The two-way softmax is sigmoid(beta (s+ - s-)), so this is `unified` without its SFT term. lambda > 0 is mandatory.
"""

from ecliptica.objectives import unified
from model.errors import InputError

RESPONSES = 2
needs_reference = unified.needs_reference


def check(config):
    if config.ablation:
        return
    if config.kl == "none":
        raise InputError(
            "objective.kl: cita's KL is mandatory, got 'none'; objective.ablation=true lifts this and is stamped on every output"
        )
    for key in ("kl_weight_start", "kl_weight_end"):
        if getattr(config, key) <= 0:
            raise InputError(
                f"objective.{key}: expected > 0, got {getattr(config, key)}; cita's KL is mandatory (the paper anneals 0.01 to 0.1); "
                "objective.ablation=true lifts this and is stamped on every output"
            )


def loss(stats, config, kl_weight):
    return unified.loss(stats, config, kl_weight, sft_weight=0.0, preference_weight=1.0)
