"""IPO: (h - 1 / (2 tau))^2, h = (log pi(Y+) - log pi_0(Y+)) - (log pi(Y-) - log pi_0(Y-)).

The margin is drawn to a finite value, where DPO's is driven to infinity. Log-probs are sums over a
response's tokens, as printed; length_normalised = true takes means, as its authors' later code.

Azar et al. 2023, A General Theoretical Paradigm to Understand Learning from Human Preferences,
equation 17 (arXiv 2310.12036).
"""

from dataclasses import dataclass

from ecliptica.config import option, positive
from ecliptica.objectives import terms
from ecliptica.objectives.contract import Needs, Step, Terms
from ecliptica.schema import Rows


@dataclass(frozen=True)
class Config:
    """The section `objective` with objective.name = "ipo"."""

    name: str = "ipo"
    tau: float = positive(0.1, "the margin is drawn to 1 / (2 tau), in nats")
    length_normalised: bool = option(False, "means over a response's tokens instead of sums")


RESPONSES = 2


def needs(config: Config) -> Needs:
    return Needs(reference=True)


def loss_at_start(config: Config) -> float:
    """The margin is 0 then."""
    return (1 / (2 * config.tau)) ** 2


def loss(rows: Rows, config: Config, step: Step) -> Terms:
    sequences = rows.sequences()
    ratio_S = sequences.logp_S - sequences.ref_logp_S
    if config.length_normalised:
        ratio_S = terms.mean_logp(ratio_S, sequences)
    margin_P = ratio_S[sequences.chosen_P] - ratio_S[sequences.rejected_P]
    loss = (margin_P - 1 / (2 * config.tau)).square().sum()

    # As a reward tau times the log-ratio: the margin of two is drawn to a half.
    return Terms(loss, terms.compared(sequences, config.tau * ratio_S, loss))
