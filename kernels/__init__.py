"""Ecliptica's kernels. The public one: `linear_logp_kl`, hidden states -> log-probs and exact
KL."""

from kernels.head import LogpKL, linear_logp_kl

__all__ = ["LogpKL", "linear_logp_kl"]
