"""-log sigmoid(beta ((logp+ - ref+) - (logp- - ref-))); reference_free = true drops the reference, as the paper's section 1 prints it."""

from ecliptica.objectives import _terms

RESPONSES = 2


def needs_reference(config):
    return not config.reference_free


def check(config):
    pass


def loss(stats, config, kl_weight):
    return _terms.combine((1.0, _terms.preference(stats, config, bool(config.reference_free))))
