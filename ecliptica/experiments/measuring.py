"""The suites of a cell, as eval.py runs them: base and trained side by side, one ledger for the
whole ablation, so that the base model is asked once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ecliptica.config import from_table, hint
from ecliptica.data.offline import fitting_template
from ecliptica.evaluation import suites
from ecliptica.evaluation.command import option_types, run_compared, run_recorded
from ecliptica.evaluation.commands import isd_generate
from ecliptica.evaluation.ledger import Answers, Ledger
from ecliptica.evaluation.measured import Column, Made
from ecliptica.evaluation.results import Results
from ecliptica.evaluation.suites import Suite
from ecliptica.evaluation.suites.switch import own_references
from ecliptica.experiments.ablation import Measurement
from ecliptica.experiments.cells import CONTRAST
from ecliptica.files import append_lines, journal
from ecliptica.recipe import Config
from model.errors import InputError
from model.tokenizer import load_tokenizer

# The suites that ask log-probs and answers alone, which contrastive decoding has.
CONTRASTED = ("switch", "paraphrase", "scale", "fidelity")
ALPHA = 1.0  # of it, where the suite's options do not say `contrast`
# What the ablation itself says of every suite.
OURS = (
    "model",
    "adapter",
    "base",
    "also",
    "template",
    "out",
    "ledger",
    "rescore",
    "data",
    "system",
)
ANSWERS = "answers.jsonl"
KL = "kl"  # the metric: exact KL to the base along the reference responses, nats a token


@dataclass(frozen=True)
class Where:
    """What a cell's suites are asked of, and where it is kept."""

    config: Config
    run: Path  # the cell's directory
    control: Path  # that of the cell which trains nothing
    ledger: Path
    trained: bool
    contrasted: bool = False

    @cached_property
    def template(self) -> str:
        name = self.config.data.template
        if name != "auto":
            return name
        return fitting_template(load_tokenizer(self.config.model.path))

    def systems(self) -> dict[str, Any]:
        """The options that say which models stand side by side."""
        model = self.config.model
        words = {"model": model.path, "template": self.template, "dtype": model.dtype}
        if not self.trained:
            return words
        final = str(self.run / "final")
        if self.config.lora.rank:
            return words | {"adapter": final}
        return words | {"model": final, "base": model.path}


def check(measurement: Measurement) -> None:
    """InputError for a suite that there is not, or an option that it does not have."""
    try:
        suite = suites.get(measurement.suite)
        words = dict.fromkeys(("model", "template", "out", "data"), "x")
        options_of(suite, measurement, words)
        if not suite.asks_systems:
            generation(measurement, words)
    except InputError as error:
        raise InputError(f"suites: {measurement.label}: {error}") from error


def options_of(suite: Suite, measurement: Measurement, words: dict[str, Any]) -> list[Any]:
    """The suite's typed options from the ablation's and the cell's."""
    kinds = option_types(suite)
    known = {field.name for kind in kinds for field in fields(kind)}
    if not suite.asks_systems:
        known |= names_of(isd_generate.Options)
    check_names(measurement, known)
    given = measurement.options | words
    return [build(kind, given) for kind in kinds]


def generation(measurement: Measurement, words: dict[str, Any]) -> Any:
    """The options of the answers that a suite of recorded answers reads."""
    return build(isd_generate.Options, measurement.options | words)


def check_names(measurement: Measurement, known: set[str]) -> None:
    for name in measurement.options:
        if name in OURS:
            raise InputError(f"{name}: the ablation sets it; leave it out")
        if name not in known:
            near = hint(name, known)
            raise InputError(f"no option {name}{near}; see eval.py {measurement.suite} --help")


def names_of(kind: type) -> set[str]:
    return {field.name for field in fields(kind)}


def build(kind: type, given: dict[str, Any]) -> Any:
    """A dataclass of options from those of `given` that it has."""
    own = names_of(kind)
    return from_table(kind, {key: given[key] for key in given if key in own}, "suites")


# Measuring


def measured(run: Path, plan: dict[str, Any], config: Config) -> Iterator[tuple[str, Results]]:
    """(label, results) of every suite of a cell, as they are made."""
    out = Path(plan["out"])
    where = Where(
        config=config,
        run=run,
        control=out / "cells" / plan["control"],
        ledger=out / "ledger",
        trained=plan["seed"] is not None,
        contrasted=plan["cell"] == CONTRAST,
    )
    loaded: dict[str, Any] = {}
    for entry in plan["suites"]:
        options = dict(entry)
        measurement = Measurement(options.pop("label"), options.pop("suite"), options)
        if where.contrasted and measurement.suite not in CONTRASTED:
            continue
        yield measurement.label, one(measurement, where, loaded)


def has_contrast() -> bool:
    """Whether contrastive decoding of the instruction is there to be a control."""
    return "contrast" in names_of(option_types(suites.get("switch"))[0])


def one(measurement: Measurement, where: Where, loaded: dict[str, Any]) -> Results:
    """The results of one suite; loaded: systems that an earlier one has left there."""
    suite = suites.get(measurement.suite)
    measurement = with_contrast(measurement, where.contrasted)
    out = where.run / "results" / measurement.label
    if not suite.asks_systems:
        answers = written_answers(measurement, where, out)
        words = {"data": str(answers), "out": str(out)}
        return run_recorded(suite, *options_of(suite, measurement, words))

    words = where.systems() | {"out": str(out), "ledger": str(where.ledger)}
    compared, options, output = options_of(suite, measurement, words)
    key = repr(compared)
    if key not in loaded:
        from ecliptica.evaluation import systems

        loaded.clear()
        suite.prepare(options)
        loaded[key] = systems.compared(compared)
    results = run_compared(suite, compared, options, output, loaded[key])
    if suite.name == "switch" and where.trained:
        results = with_kl(results, suite.prepare(options).units, loaded[key], where.ledger)
    return results


def with_contrast(measurement: Measurement, contrasted: bool) -> Measurement:
    """The options for one cell: `contrast` is of the cell that is about it alone."""
    options = dict(measurement.options)
    alpha = options.pop("contrast", ALPHA)
    if contrasted:
        options["contrast"] = alpha
    return replace(measurement, options=options)


def written_answers(measurement: Measurement, where: Where, out: Path) -> Path:
    """The file of answers of base and trained. The base's are the control cell's: a line is found
    by what it is an answer to, so they count as they are."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / ANSWERS
    earlier = where.control / "results" / measurement.label / ANSWERS
    if where.run != where.control and not path.exists() and earlier.exists():
        append_lines(path, journal(earlier))
    isd_generate.run(generation(measurement, where.systems() | {"out": str(path)}))
    return path


def with_kl(
    results: Results, units: Sequence[Any], systems: dict[str, Any], ledger: Path
) -> Results:
    """The results with one more row: exact KL to the control along the reference responses of every
    prompt, nats a token. What the suite asked already is not asked again."""
    control, *others = systems
    book = Ledger(ledger)
    metrics = results.metrics | {KL: Column("exact KL to the base (nats a token)", None)}
    derived = results.derived | {KL: Made(("kl_nats", "kl_tokens"), "ratio")}
    parts = {label: dict(own) for label, own in results.parts.items()}
    for label in others:
        questions = own_references(units)
        answers = book.ask(systems[label], label, questions, systems[control])
        nats = [total(answers, own_references([unit])) for unit in units]
        tokens = [tokens_of(answers, own_references([unit])) for unit in units]
        parts[label] |= {"kl_nats": nats, "kl_tokens": tokens}
        parts[control] |= {"kl_nats": [0.0] * len(units), "kl_tokens": tokens}
    whole = replace(results, metrics=metrics, derived=derived, parts=parts)
    again = Results.pooled([whole])
    return replace(whole, systems=again.systems, difference=again.difference)


def total(answers: Answers, questions: Sequence[Any]) -> float:
    """Nats of all questions."""
    return float(sum(answers[question] for question in questions))


def tokens_of(answers: Answers, questions: Sequence[Any]) -> float:
    """Tokens of their responses; 0 nats of a system that is its own control have none."""
    if answers.is_control:
        return 1.0
    return float(sum(answers.tokens(question) for question in questions))
