"""A suite as a command: the data first, then the outputs, then the models; results.json, table.md
and the table on the screen."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ecliptica.config import option
from ecliptica.evaluation.ledger import FILE, Answering, Ledger
from ecliptica.evaluation.options import Compared
from ecliptica.evaluation.report import tables
from ecliptica.evaluation.rescoring import recorded
from ecliptica.evaluation.results import Results
from ecliptica.evaluation.run import run_study
from ecliptica.evaluation.suites import Suite
from ecliptica.files import check_writable, write_text


@dataclass(frozen=True)
class Output:
    """Where results go. Of every suite."""

    out: str = option(..., "directory to write")


@dataclass(frozen=True)
class KeptOutput(Output):
    """And where answers come from. Of every suite that asks systems."""

    out: str = option(
        ..., "directory to write; what its samples.jsonl has already is not computed again"
    )
    rescore: str | None = option(
        None,
        "compute the metrics again from a samples.jsonl; no model is loaded",
        metavar="SAMPLES",
    )
    ledger: str | None = option(
        None,
        "file or directory where answers are kept instead, for several runs to share",
    )


def option_types(suite: Suite) -> tuple[type, ...]:
    """The dataclasses whose fields are the flags of a suite."""
    if not suite.asks_systems:
        return suite.Options, Output
    return Compared, suite.Options, KeptOutput


def run_suite(suite: Suite, *options: Any) -> Results:
    """A suite from the values of its `option_types`."""
    if not suite.asks_systems:
        return run_recorded(suite, *options)
    return run_compared(suite, *options)


def run_recorded(suite: Suite, options: Any, output: Output) -> Results:
    """A suite whose options name a file of answers."""
    study = suite.prepare(options)
    check_outputs(output)
    results = run_study(suite, study, options, None, Ledger(output.out), asdict(output))
    write(results, output.out)
    return results


def run_compared(
    suite: Suite,
    compared: Compared,
    options: Any,
    output: KeptOutput,
    loaded: dict[str, Answering] | None = None,
) -> Results:
    """A suite that asks systems. loaded: they are there already, from an earlier suite."""
    # Everything that can be wrong before a model is looked for.
    study = suite.prepare(options)
    check_outputs(output)
    ledger = Ledger(output.rescore or output.ledger or Path(output.out) / FILE)

    # Only now what takes seconds to import.
    from ecliptica.evaluation import systems

    if output.rescore:
        record = systems.made_with(compared.model, compared.template, compared.adapter)
        loaded = recorded(ledger, record)
    else:
        ledger.check_writable("--ledger" if output.ledger else "--out")
        loaded = loaded or systems.compared(compared)

    config = asdict(compared) | asdict(output)
    results = run_study(suite, study, options, loaded, ledger, config)
    write(results, output.out)
    return results


def check_outputs(output: Output) -> None:
    """InputError if results could not be written."""
    check_writable(output.out, "--out", directory=True)
    for name in ("results.json", "table.md"):
        check_writable(Path(output.out) / name, "--out")


def write(results: Results, out: str) -> None:
    results.write(out)
    write_text(Path(out) / "table.md", tables.of(results))
    print(results)
