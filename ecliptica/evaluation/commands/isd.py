"""All likelihood suites, one after another, each into --out/SUITE, and one summary. Killed and
started again it goes on where it was.

--bank and --instructions go to the suites of the bank; with instructions of your own leave
`underspecified` out, which has texts for the shipped ones, or run it by itself with --data.
--rescore DIR: the --out of an earlier run.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ecliptica.config import option
from ecliptica.evaluation import suites
from ecliptica.evaluation.banks import WordedOptions, some_of
from ecliptica.evaluation.command import KeptOutput, run_compared
from ecliptica.evaluation.ledger import FILE
from ecliptica.evaluation.options import Compared
from ecliptica.evaluation.report import tables
from ecliptica.evaluation.results import Results
from ecliptica.evaluation.suites import Suite
from ecliptica.files import check_writable, write_json, write_text
from ecliptica.isd.bank import WORDING
from model.errors import InputError

OF_BANK = ("switch", "paraphrase", "underspecified", "override", "shift", "scale")
OF_POLICIES = ("refusal", "honesty", "capability")
ALL = OF_BANK + OF_POLICIES


@dataclass(frozen=True, kw_only=True)
class Options(WordedOptions, Compared):
    out: str = option(..., "directory to write; what it has already is not computed again")
    rescore: str | None = option(
        None,
        "compute the metrics again from the directory of an earlier run; no model is loaded",
        metavar="DIR",
    )
    ledger: str | None = option(
        None, "file or directory where answers are kept instead, for several runs to share"
    )
    suites: tuple[str, ...] = option(ALL, "which, comma-separated")


def run(options: Options) -> None:
    chosen = some_of(options.suites, ALL, "--suites")
    if not chosen:
        raise InputError(f"--suites: none given; expected some of {', '.join(ALL)}")
    check_writable(options.out, "--out", directory=True)
    for name in ("summary.json", "summary.md"):
        check_writable(Path(options.out) / name, "--out")

    # Only now what takes seconds to import.
    from ecliptica.evaluation import systems

    # The models are loaded once for all suites, when the first one is known to be right.
    loaded = None
    all_results = {}
    for number, name in enumerate(chosen, start=1):
        print(f"[{number}/{len(chosen)}] {name}", flush=True)
        suite = suites.get(name)
        own = options_of(suite, options)
        output = output_of(name, options)
        if loaded is None and not options.rescore:
            suite.prepare(own)
            loaded = systems.compared(options)
        all_results[name] = run_compared(suite, options, own, output, loaded)

    summary = {name: headline(results) for name, results in all_results.items()}
    write_json(Path(options.out) / "summary.json", summary)
    text = tables.summary_of(all_results)
    write_text(Path(options.out) / "summary.md", text)
    print(text)


def options_of(suite: Suite, options: Options) -> Any:
    """The options of one suite from those of all: what both have. The split chooses the policies'
    wording too."""
    known = {field.name for field in fields(suite.Options)}
    shared = ["limit"]
    if suite.name in OF_BANK:
        shared += ["bank", "instructions", "split", "wording"]
    own = {name: getattr(options, name) for name in shared if name in known}
    if suite.name in OF_POLICIES:
        own["wording"] = options.wording or WORDING[options.split]
    return suite.Options(**own)


def output_of(name: str, options: Options) -> KeptOutput:
    rescore = None
    if options.rescore:
        rescore = str(Path(options.rescore) / name / FILE)
    return KeptOutput(str(Path(options.out) / name), rescore, options.ledger)


def headline(results: Results) -> dict[str, Any]:
    """What the summary keeps of a suite's results."""
    name = results.headline
    plain = results.to_json()
    systems = plain["systems"]
    difference = plain.get("difference", {})
    return plain["metrics"][name] | {
        "metric": name,
        "units": results.units,
        "unit": results.unit,
        "reportable": results.reportable,
        "ablation": bool(results.made.get("ablation")),
        "systems": {label: by_name[name] for label, by_name in systems.items()},
        "difference": {label: by_name[name] for label, by_name in difference.items()},
    }
