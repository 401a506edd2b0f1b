"""What a recipe's section `data` says, whatever the format; a format may add keys of its own."""

from dataclasses import dataclass

from ecliptica.config import choice, option, positive


@dataclass(frozen=True)
class DataConfig:
    """The section `data`. Formats with further keys have a subclass of this (formats/isd.py)."""

    train: str = option("", "preferences to train on")
    eval: str = option("", "held-out preferences for training.eval_every; empty: none")
    format: str = option("cita", "of these files: a name in ecliptica/data/formats")
    template: str = option("auto", "chat template; auto: the one whose tokens the tokenizer has")
    max_tokens: int = positive(2048, "context and longest response together")
    keep_prompt_tokens: int = positive(
        32, "of the prompt's end, which a long response may not push out"
    )
    on_error: str = choice("stop", ("stop", "skip"), "at a bad line; skip: count it and go on")
    contrastive: bool = option(False, "paper 4.2: the context shows the rejected response")
    use_instruction: bool = option(True, "false: train without the alignment instruction")
    instruction_in: str = choice(
        "user", ("user", "system"), "the turn of the chat template that it stands in"
    )
