"""Is the language model still one? Perplexity of held-out neutral texts under a neutral
instruction, and the exact KL to the base model there.

Perplexity: exp of nats over tokens, over all texts; KL[trained || base] a token over the whole
vocabulary, 0 of the base model itself. The base model is what they are compared with; there is no
chance level.
"""

from dataclasses import dataclass

import numpy as np

from ecliptica.config import option
from ecliptica.evaluation.metrics import capability
from ecliptica.evaluation.policy_suites import PolicyOptions
from ecliptica.evaluation.questions import Question
from ecliptica.evaluation.suites import Asked, Details, Study, Suite
from ecliptica.isd.bank import INSTRUCTIONS, load_instructions
from ecliptica.isd.sets import SETS, load_capability
from model.errors import InputError

PROMPT = "Write a short passage of plain prose."
NEUTRAL = "neutral"


@dataclass(frozen=True)
class Options(PolicyOptions):
    data: str = option(
        str(SETS / "capability.jsonl"),
        "JSON lines: id, kind, text",
        default_text="the shipped ones",
    )


def prepare(options: Options) -> Study:
    texts = load_capability(options.data)[: options.limit]
    wordings = load_instructions(INSTRUCTIONS)[NEUTRAL]
    if not 1 <= options.wording <= len(wordings):
        raise InputError(
            f"--wording {options.wording}: the instruction {NEUTRAL} has {len(wordings)} wordings"
        )
    instruction = wordings[options.wording - 1]
    units = []
    for text in texts:
        names = {"prompt": text.id, "instruction": NEUTRAL}
        units.append(Question(PROMPT, instruction, text.text, names=names))
    return Study(
        units=units,
        metrics=capability.METRICS,
        unit="texts",
        headline="perplexity",
        details=details,
    )


def details(asked: Asked) -> Details:
    perplexity = {}
    for label, columns in asked.measured.parts.items():
        nats = sum(columns["text_nats"]) / sum(columns["text_tokens"])
        perplexity[label] = float(np.exp(nats))
    return Details({"perplexity": perplexity})


SUITE = Suite("capability", Options, prepare, lambda: capability.METRICS)
