"""How sampled responses and their contract are measured: the command `contract`."""

from collections.abc import Iterator, Sequence
from typing import Any

from ecliptica import config, rewards
from ecliptica.evaluation import statistics, systems
from ecliptica.evaluation.answers import BATCH, ends
from ecliptica.evaluation.given import Given, check_room, context_of, parse
from ecliptica.files import check_writable, read_records, write_json, write_lines
from ecliptica.rewards.contract import Scorer
from model.generate import Room, sample


def measure(options: Any) -> None:
    """The whole command; options: its flags. Raises InputError."""
    # What can be wrong before a model is loaded: the reward, the lines, the outputs.
    score = scorer(options.reward)
    given = read_records(
        options.data, lambda record, where: parse(record, where, False, responses=False)
    )
    given = given[: options.limit or None]
    summary_path = f"{options.out}.contract.json"
    check_writable(options.out, "--out")
    check_writable(summary_path, "--out")
    system = systems.load_one(options)

    contexts = [context_of(system, line) for line in given]
    for line, context in zip(given, contexts):
        check_room(system, line, context, options.max_new_tokens)
    answers = list(responses(system, contexts, options))
    asked = [(line.instruction, line.prompt) for line in given]
    judged = score([(*about, text, ended) for about, (text, ended, _) in zip(asked, answers)])

    # A line for each response, and what they are together.
    records = []
    for line, (text, ended, _), reward in zip(given, answers, judged):
        records.append(line.record | {"text": text, "ended": ended, "reward": reward})
    write_lines(options.out, records)
    summary = summary_of(given, answers, judged)
    write_json(summary_path, summary)
    print(
        f"{options.out}: reward {summary['value']:.3f} [{summary['low']:.3f}, "
        f"{summary['high']:.3f}] of {len(given)} responses, {summary['length']:.1f} tokens, "
        f"{summary['ended']:.1%} ended"
    )


def scorer(words: Sequence[str]) -> Scorer:
    """The reward that --reward names. Raises InputError as a recipe's section `reward` would."""
    name, *keys = words
    table: dict[str, Any] = {"name": name}
    for key in keys:
        config.put(table, key, "--reward")
    kind = rewards.REWARDS.get(name).Config
    return rewards.scorer(config.from_table(kind, table, "--reward"))


def responses(
    system: systems.System, contexts: Sequence[Sequence[int]], options: Any
) -> Iterator[tuple[str, bool, int]]:
    """(text, whether it ended, tokens) of one response to each context."""
    stops = ends(system)
    room = Room(options.max_new_tokens, BATCH)
    seeds = [options.seed + number for number in range(len(contexts))]
    sampled = sample(system.model, contexts, room, stops, options.temperature, seeds)
    for response in sampled:
        ended = response[-1] in stops
        ids = response[:-1] if ended else response
        yield system.tokenizer.decode(ids), ended, len(response)


def summary_of(
    given: Sequence[Given], answers: Sequence[tuple[str, bool, int]], judged: Sequence[float]
) -> dict[str, float | None]:
    """The mean reward and its interval; prompts are the units."""
    by_prompt: dict[str, list[float]] = {}
    for line, reward in zip(given, judged):
        by_prompt.setdefault(line.prompt, []).append(reward)
    values_P = [sum(values) / len(values) for values in by_prompt.values()]
    summary = statistics.summary(values_P, statistics.draws(len(values_P)))
    return summary | {
        "responses": len(given),
        "length": sum(tokens for _, _, tokens in answers) / len(answers),
        "ended": sum(ended for _, ended, _ in answers) / len(answers),
    }
