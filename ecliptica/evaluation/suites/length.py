"""Does the model keep a length contract? Short (at most 50 words) and long (at least 200) answers
to the same prompts, generated.

Answers go into --out/samples.jsonl and are not made again; --rescore counts them without a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from ecliptica.config import option, positive
from ecliptica.evaluation.metrics import length_contract, published
from ecliptica.evaluation.metrics.length_contract import LONG, ROOM, Contract, count
from ecliptica.evaluation.options import SamplingOptions
from ecliptica.evaluation.policy_suites import PolicyOptions, wording_of
from ecliptica.evaluation.questions import Question
from ecliptica.evaluation.suites import Asked, Details, Study, Suite
from ecliptica.isd.sets import SETS, load_length


@dataclass(frozen=True)
class Options(SamplingOptions, PolicyOptions):
    max_new_tokens: int = positive(384, "tokens of an answer at most")
    data: str = option(
        str(SETS / "length.jsonl"), "JSON lines: id, prompt", default_text="the shipped ones"
    )
    policies: str = option(
        str(SETS / "length.toml"), "TOML with short and long", default_text="the shipped ones"
    )


def prepare(options: Options) -> Study:
    items = load_length(options.data)[: options.limit]
    policies = wording_of(options.policies, ("short", "long"), options.wording)
    units = []
    for item in items:
        contract = []
        for policy, text in policies.items():
            names = {
                "condition": "instruction",
                "prompt": item.id,
                "instruction": policy,
                "wording": options.wording,
            }
            contract.append(
                Question(item.prompt, text, asked="answer", sampling=options.sampling, names=names)
            )
        units.append(tuple(contract))
    return Study(units=units, metrics=length_contract.METRICS, details=partial(details, units))


def details(units: Sequence[Contract], asked: Asked) -> Details:
    """M4 as published, and whether the answers had room to be long."""
    m4, notes, limits = {}, [], set()
    for label, answers in asked.answers.items():
        pairs = [(answers[short], answers[long]) for short, long in units]
        long_words = [count(long["r"]) for _, long in pairs]
        short_words = [count(short["r"]) for short, _ in pairs]
        m4[label] = published.length_ratio(long_words, short_words)
        notes.append(
            f"As published (M4), {label}: mean words long over short {m4[label]:.2f}, target > 4."
        )
        limits |= {line["settings"]["max_new_tokens"] for pair in pairs for line in pair}
    most = min(limits)
    if most < ROOM:
        notes.append(
            f"Cut at {most} tokens, an answer cannot be long: {LONG} words need about {ROOM}. "
            "`short` is kept by force."
        )
    return Details({"published": {"m4": m4}}, notes)


SUITE = Suite("length", Options, prepare, lambda: length_contract.METRICS)
