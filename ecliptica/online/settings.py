"""The section `rollout` of a recipe."""

from dataclasses import dataclass

from ecliptica.config import not_negative, option, positive
from model.errors import InputError


@dataclass(frozen=True)
class RolloutConfig:
    """The section `rollout`: what is sampled in a step, and how often it is learnt from."""

    prompts: str = option("", 'JSON lines of {"prompt"} or {"instruction", "prompt"}')
    prompts_per_step: int = positive(8, "over all ranks")
    responses: int = positive(1, "K, to each prompt; grpo compares them")
    max_new_tokens: int = positive(64, "of a response; a longer one is cut")
    temperature: float = positive(1.0, "of sampling, and of every log-prob of the run")
    top_p: float = option(1.0, "1: a truncated sample has other log-probs than it is learnt with")
    missing_end: float = option(-1.0, "added to the score of a response that was cut")
    epochs: int = positive(4, "passes over a rollout")
    minibatches: int = positive(1, "optimizer updates of a pass")
    rows: int = not_negative(0, "responses that a rank continues at a time; 0: all of a step")
    shown: int = not_negative(2, "responses that training.sample_every prints in full")

    def check(self) -> None:
        if self.top_p != 1:
            raise InputError(
                f"rollout.top_p: expected 1, got {self.top_p}: what is sampled from a truncated "
                "distribution is not learnt with its log-probs; use rollout.temperature"
            )
        if self.minibatches > self.prompts_per_step:
            raise InputError(
                f"rollout.minibatches: {self.minibatches} of rollout.prompts_per_step="
                f"{self.prompts_per_step} prompts; expected at most one a prompt"
            )
        if 0 < self.rows < self.responses:
            raise InputError(
                f"rollout.rows: {self.rows} places do not hold the rollout.responses="
                f"{self.responses} of one prompt; expected at least so many, or 0"
            )
