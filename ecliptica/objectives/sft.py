"""ITA: supervised fine-tuning on the chosen response. With data.contrastive, on contrastive ITA (paper 4.2)."""

from ecliptica.objectives import _terms

RESPONSES = 1


def needs_reference(config):
    return False


def check(config):
    pass


def loss(stats, config, kl_weight):
    return _terms.combine((1.0, _terms.sft(stats, config)))
