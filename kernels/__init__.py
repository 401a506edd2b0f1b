"""Ecliptica's kernels. The public one: `linear_logp_kl`, from hidden states to log-probs and exact KL, never via full logits."""

from kernels.head import LogpKL, linear_logp_kl

__all__ = ["LogpKL", "linear_logp_kl"]
