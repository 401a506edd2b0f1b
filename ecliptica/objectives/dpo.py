"""-log sigmoid(beta ((logp+ - ref+) - (logp- - ref-))); reference_free = true drops the reference, as the paper's section 1 prints it."""

from dataclasses import dataclass

from ecliptica.objectives import terms


@dataclass(frozen=True)
class Config(terms.PreferenceConfig):
    """The section `objective` with objective.name = "dpo"."""

    name: str = "dpo"


RESPONSES = 2


def needs_reference(config):
    return not config.reference_free


def loss(stats, config, kl_weight):
    return terms.combine((1.0, terms.preference(stats, config, bool(config.reference_free))))
