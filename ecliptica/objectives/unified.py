"""sft + lambda_1 * preference + lambda_2 * KL, paper section 1; lambda_1 = preference_weight, lambda_2 = kl_weight, annealed."""

from ecliptica.objectives import _terms

RESPONSES = 2


def needs_reference(config):
    return config.kl != "none" or not _reference_free(config)


def _reference_free(config):
    return config.reference_free is not False


def check(config):
    pass


def loss(stats, config, kl_weight, sft_weight=1.0, preference_weight=None):
    lambda_1 = config.preference_weight if preference_weight is None else preference_weight
    terms = [(lambda_1, _terms.preference(stats, config, _reference_free(config)))]
    if sft_weight:
        terms.append((sft_weight, _terms.sft(stats, config)))
    if config.kl != "none":
        terms.append((kl_weight, _terms.kl(stats, config)))
    return _terms.combine(*terms)
