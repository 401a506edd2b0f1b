"""sft + lambda_1 * preference + lambda_2 * KL, paper section 1; lambda_1 = preference_weight, lambda_2 = kl_weight, annealed."""

from dataclasses import dataclass

from ecliptica.config import not_negative, option
from ecliptica.objectives import terms


@dataclass(frozen=True)
class Config(terms.KLConfig, terms.PreferenceConfig):
    """The section `objective` with objective.name = "unified"."""

    name: str = "unified"
    reference_free: bool = option(True, "drop the reference's log-probs from the margin")
    preference_weight: float = not_negative(1.0, "lambda_1, of the contrastive term")


RESPONSES = 2


def needs_reference(config):
    return config.kl != "none" or not _reference_free(config)


def _reference_free(config):
    return config.reference_free


def loss(stats, config, kl_weight, sft_weight=1.0, preference_weight=None):
    lambda_1 = config.preference_weight if preference_weight is None else preference_weight
    weighted = [(lambda_1, terms.preference(stats, config, _reference_free(config)))]
    if sft_weight:
        weighted.append((sft_weight, terms.sft(stats, config)))
    if config.kl != "none":
        weighted.append((kl_weight, terms.kl(stats, config)))
    return terms.combine(*weighted)
