"""What changes with the step: learning rate and KL weight."""

import math


def learning_rate(step, steps, config):
    """Linear warm-up over the first `warmup` share of the steps, then cosine to 0, or constant."""
    warm = max(1, round(config.warmup * steps)) if config.warmup else 0
    if step < warm:
        return config.lr * (step + 1) / warm
    if config.schedule == "constant":
        return config.lr
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def kl_weight(step, steps, config):
    """lambda: linear from kl_weight_start at the first step to kl_weight_end at the last (paper: 0.01 to 0.1)."""
    if not hasattr(config, "kl_weight_start"):
        return 0.0
    share = step / (steps - 1) if steps > 1 else 0.0
    return config.kl_weight_start + share * (config.kl_weight_end - config.kl_weight_start)
