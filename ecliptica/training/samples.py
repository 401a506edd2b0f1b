"""Whether behaviour switches is seen while it trains: fixed prompts, answered under every
instruction."""

from typing import Any

from ecliptica.data.templates import encode_pieces, render_context, stop_ids
from ecliptica.recipe import SamplesConfig
from ecliptica.running.ranks import Ranks
from ecliptica.training.step import as_evaluated
from model.generate import generate
from model.llama import Llama


def answer(
    model: Llama, settings: SamplesConfig, tokenizer: Any, template: Any, ranks: Ranks
) -> list[dict[str, str]]:
    """[{"prompt", "instruction", "text"}], greedily, on every rank.

    The questions are dealt to the ranks; with a sharded model all of them generate until the last
    is done.
    """
    questions = [(p, i) for p in settings.prompts for i in settings.instructions]
    if not questions:
        return []
    mine = questions[ranks.rank :: ranks.world] or questions[:1]
    contexts = [encode_pieces(tokenizer, render_context(template, p, i)) for p, i in mine]

    def all_done(done: bool) -> bool:
        return ranks.reduce([not done], "max") == [0]

    with as_evaluated(model):
        answers = generate(
            model,
            contexts,
            settings.max_new_tokens,
            stop_ids(template, tokenizer),
            agreed=all_done,
        )
    texts = ranks.gather([tokenizer.decode(ids) for ids in answers])
    records = []
    for number, (prompt, instruction) in enumerate(questions):
        text = texts[number % ranks.world][number // ranks.world]
        records.append({"prompt": prompt, "instruction": instruction, "text": text})
    return records


def in_a_line(answer: dict[str, Any]) -> str:
    """An answer for the person who watches: a rollout's in full, with its score."""
    text = " ".join(answer["text"].split())
    if "score" not in answer:
        return f"  [{answer['instruction']}] {text[:160]}"
    asked = " ".join(answer["prompt"].split())
    end = "ended" if answer["ended"] else "cut"
    return f"  [{asked}] {text} ({end}, score {answer['score']:.3g})"
