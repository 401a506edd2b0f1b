"""Which systems a command asks, and how they generate: its options alone, so that --help and a
mistyped flag do not wait for torch. What is done with them: systems.py, answers.py."""

from dataclasses import dataclass

from ecliptica.config import Rule, choice, not_negative, option, positive, seed
from ecliptica.data.templates import PLACES
from ecliptica.evaluation.questions import Sampling
from model.errors import InputError

BASE = "prompting-only"  # the control: the base model under the same instructions
TRAINED = "trained"
CONTRASTIVE = "contrastive"  # the base model by contrastive decoding
SYSTEM_TURN = "system turn"  # the base model with the instruction in the system turn
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
    instruction_in: str | None = choice(
        None, PLACES, "the turn that the instruction stands in", default_text="as trained, or user"
    )


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
    contrast: float | None = positive(
        None, "adds the control `contrastive`: the base model, contrastive decoding with this alpha"
    )
    system_turn: bool = option(
        False, "adds the control `system turn`: the base model, the instruction in that turn"
    )

    def check(self) -> None:
        labels = [label for label, _ in self.others()]
        own = (BASE, TRAINED, CONTRASTIVE, SYSTEM_TURN)
        if len({*labels, *own}) < len(labels) + len(own):
            raise InputError(
                f"--also: the labels {', '.join(labels)} must differ from one another and from "
                f"{', '.join(own)}"
            )
        if self.contrast and self.template == "none":
            raise InputError("--contrast: needs a template to tell the instruction by, not none")

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
class ContrastOptions:
    """The option of commands that ask one system."""

    contrast: float = not_negative(
        0.0, "alpha of contrastive decoding: logits (I, x) + alpha (logits (I, x) - logits (x))"
    )


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
