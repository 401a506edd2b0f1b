"""log P(instruction | response), by the classifier that the evaluation's fidelity is measured with:
learned from the train split's references of a bank.

An answer is not looked at for its prompt, so this reward can be had by a stock text for each
instruction. An empty answer gets the floor.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ecliptica.config import Rule, option
from ecliptica.isd.bank import BANK, INSTRUCTIONS, load_bank, load_instructions, referenced
from ecliptica.isd.instruction_classifier import InstructionClassifier
from ecliptica.rewards.contract import Answer, Scene, Scorer
from model.errors import InputError

BELOW_ZERO = Rule("< 0", lambda value: value < 0)


@dataclass(frozen=True)
class Config:
    """The section `reward` with reward.name = "classifier"."""

    name: str = "classifier"
    bank: str = option("", "whose references it learns from; empty: the shipped bank")
    instructions: str = option("", "TOML of instructions; empty: the shipped ones")
    floor: float = option(-10.0, "the lowest reward, in nats: naive Bayes is too sure", BELOW_ZERO)


def scorer(config: Config, scene: Scene | None) -> Scorer:
    """answers -> rewards in nats, from config.floor to 0. Raises InputError for a bank without
    references; the function itself for an instruction that is none of the known wordings."""
    path = config.bank or BANK
    wordings = load_instructions(config.instructions or INSTRUCTIONS)
    names = list(wordings)
    train = [entry for entry in load_bank(path, wordings) if entry.split == "train"]
    entries = referenced(train, names)
    if not entries:
        raise InputError(
            f"reward.bank: {path}: no prompt of the train split has references; the classifier "
            "learns from them"
        )
    texts = [entry.responses[name] for entry in entries for name in names]
    classifier = InstructionClassifier(texts, names * len(entries))
    name_of = {text: name for name, texts in wordings.items() for text in texts}

    def rewards(answers: Sequence[Answer]) -> list[float]:
        numbers = []
        for instruction, prompt, text, _ in answers:
            if instruction not in name_of:
                raise InputError(
                    f"reward.name=classifier: {prompt!r:.60}: the instruction "
                    f"{instruction!r:.60} is none of the {len(names)} that it knows; give "
                    "reward.instructions, or prompts under those"
                )
            logp = config.floor
            if text.strip():
                logp = classifier.log_probs(text)[name_of[instruction]]
            numbers.append(max(logp, config.floor))
        return numbers

    return rewards
