"""How the rewards of given responses are measured: the command `reward`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ecliptica.evaluation import statistics, systems
from ecliptica.evaluation.given import Given, context_of, encode_response, parse
from ecliptica.evaluation.scoring import check_finite, check_fits
from ecliptica.fields import text
from ecliptica.files import check_writable, read_records, write_json, write_lines
from ecliptica.rewards.model import check_reward, is_adapter, score_examples
from ecliptica.schema import Encoded
from model.errors import InputError
from model.lora_layer import POLICY
from model.scalar_head import load_scalar_head


def measure(options: Any) -> None:
    """The whole command; options: its flags. Raises InputError."""
    # What can be wrong before a model is loaded: the lines, the output, whose reward model it is.
    rendered = options.template == "none"
    given = read_records(options.data, lambda record, where: read(record, where, rendered))
    summary_path = f"{options.out}.accuracy.json"
    check_writable(options.out, "--out")
    check_writable(summary_path, "--out")
    check(options)

    system = systems.load_one(options)
    if not options.adapter:
        load_scalar_head(system.model, options.model)
    rewards = score(system, given)
    write_lines(options.out, (line.record | {"rewards": r} for line, r in zip(given, rewards)))
    print(f"{options.out}: {len(given)} contexts, {sum(map(len, rewards))} responses rewarded")

    accuracy = accuracy_of(given, rewards)
    if accuracy:
        write_json(summary_path, accuracy)
        print(
            f"{summary_path}: accuracy {accuracy['value']:.3f} "
            f"[{accuracy['low']:.3f}, {accuracy['high']:.3f}] of {accuracy['preferences']} "
            f"preferences of {accuracy['prompts']} prompts"
        )


def read(record: dict[str, Any], where: str, rendered: bool) -> Given:
    """A line; chosen and rejected are its responses where it has them."""
    if "responses" in record or "chosen" not in record:
        return parse(record, where, rendered)
    line = parse(record, where, rendered, responses=False)
    chosen = text(record, "chosen", where)
    return replace(line, responses=(chosen, text(record, "rejected", where)))


def is_preference(line: Given) -> bool:
    return "responses" not in line.record


def check(options: Any) -> None:
    """Raises InputError for what is no reward model, or one of another base."""
    if not options.adapter:
        check_reward(options.model, options.template, None)
        return
    if Path(options.adapter).is_dir() and not is_adapter(options.adapter):
        raise InputError(
            f"{options.adapter}: no adapter_config.json in it: no adapter, or of a run that has "
            "not ended; expected the final/ of a run with objective.name=reward"
        )
    check_reward(options.adapter, options.template, options.model)


def score(system: systems.System, given: Sequence[Given]) -> list[list[float]]:
    """The rewards of every line's responses. Raises InputError for a line that does not fit."""
    examples = []
    for line in given:
        context = context_of(system, line)
        responses = [tuple(encode_response(system, response)) for response in line.responses]
        check_fits(system, line.where, context, responses)
        examples.append(
            Encoded(line.where, tuple(context), tuple(responses), (0.0,) * len(responses))
        )
    rewards = score_examples(system.model, examples, system.batch_tokens, POLICY)
    for line, of_line in zip(given, rewards):
        for reward in of_line:
            check_finite(reward, f"{line.where}: reward")
    return rewards


def accuracy_of(
    given: Sequence[Given], rewards: Sequence[Sequence[float]]
) -> dict[str, float] | None:
    """Value and interval; prompts are the units. None if no line is a preference."""
    by_prompt: dict[str, list[float]] = {}
    for line, of_line in zip(given, rewards):
        if is_preference(line):
            chosen, rejected = of_line
            right = float(chosen > rejected) + 0.5 * float(chosen == rejected)
            by_prompt.setdefault(line.prompt or line.context, []).append(right)
    if not by_prompt:
        return None
    values_P = [sum(right) / len(right) for right in by_prompt.values()]
    summary = statistics.summary(values_P, statistics.draws(len(values_P)))
    count = sum(map(len, by_prompt.values()))
    return summary | {"prompts": len(values_P), "preferences": count}
