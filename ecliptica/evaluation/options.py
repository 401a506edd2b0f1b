"""Which systems a command asks, and how they generate: its options alone, so that --help and a
mistyped flag do not wait for torch. What is done with them: systems.py, answers.py."""

from dataclasses import dataclass

from ecliptica.config import Rule, choice, not_negative, option, positive, seed
from ecliptica.evaluation.questions import Sampling
from model.errors import InputError

BASE = "prompting-only"  # the control: the base model under the same instructions
TRAINED = "trained"
A_MASS = Rule("a share above 0, up to 1", lambda value: 0 < value <= 1)


@dataclass(frozen=True)
class Options:
    """Which system: what every command that asks a model takes."""

    model: str = option(..., "Hugging Face model directory")
    template: str = option(..., "llama3, chatml, alpaca, paper; none: the input is rendered text")
    adapter: str | None = option(None, "LoRA adapter directory (PEFT layout)")
    dtype: str = choice("float32", ("float32", "bfloat16"), "what the model computes in")
    batch_tokens: int = positive(4096, "packed tokens a forward pass takes at most")
    device: str = choice("auto", ("auto", "cpu", "cuda"), "where it runs")


@dataclass(frozen=True)
class Compared(Options):
    """Which systems stand side by side in one table."""

    base: str | None = option(
        None,
        "control model directory, when --model is itself the trained one (full fine-tuning)",
    )
    also: tuple[str, ...] = option(
        (),
        "one more trained adapter (another seed, or trained without I); may be repeated",
        repeat=True,
        metavar="LABEL=ADAPTER",
    )

    def check(self) -> None:
        labels = [label for label, _ in self.others()]
        if len({*labels, BASE, TRAINED}) < len(labels) + 2:
            raise InputError(
                f"--also: the labels {', '.join(labels)} must differ from one another and from "
                f"{BASE}, {TRAINED}"
            )

    def others(self) -> list[tuple[str, str]]:
        """(label, adapter directory) of each --also."""
        pairs = []
        for text in self.also:
            label, _, path = text.partition("=")
            if not label or not path:
                raise InputError(
                    f"--also {text}: expected LABEL=ADAPTER_DIRECTORY, such as "
                    "seed-1=runs/seed1/final"
                )
            pairs.append((label, path))
        return pairs


@dataclass(frozen=True)
class SamplingOptions:
    """The options of whatever generates."""

    max_new_tokens: int = positive(128, "tokens of an answer at most")
    temperature: float = not_negative(0.0, "0: greedy")
    top_p: float = option(1.0, "sample from the likeliest tokens of this probability", A_MASS)
    seed: int = seed(0, "of the sampling")

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.max_new_tokens, self.temperature, self.top_p, self.seed)
