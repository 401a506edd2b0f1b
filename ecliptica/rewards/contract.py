"""What a reward is asked, and what it may compute with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ecliptica.data.templates import Template
from model.llama import Llama
from model.tokenizer import Tokenizer

# (instruction, prompt, response, whether it ended by its own stop token)
Answer = tuple[str | None, str, str, bool]
Scorer = Callable[[Sequence[Answer]], list[float]]


@dataclass(frozen=True)
class Scene:
    """The model in memory, for a reward that is an adapter of it."""

    model: Llama
    path: str  # the directory of its base
    tokenizer: Tokenizer
    template: Template
    batch_tokens: int = 4096  # of a forward
