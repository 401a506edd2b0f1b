"""Does the model prefer what somebody judged best? Accuracy on pairs or lists of responses that
are judged under an instruction or a principle.

--data: {"instruction" or "principle", "prompt", "responses": [...], "best": n} a line, n counted
from 0 as in the list. By likelihood, by PMI and by likelihood a token; no judge. Controls: the
prompt without the instruction ("prompt only"), and the instruction with a prompt that says nothing
("principle only"): what either of them gives away alone.
"""

from dataclasses import dataclass, replace

from ecliptica.config import option
from ecliptica.evaluation.banks import AT_LEAST_ONE
from ecliptica.evaluation.metrics import judged_pairs
from ecliptica.evaluation.metrics.judged_pairs import Judged
from ecliptica.evaluation.pmi import CONTENT_FREE
from ecliptica.evaluation.questions import Question
from ecliptica.evaluation.suites import Study, Suite
from ecliptica.fields import Record, text, texts
from ecliptica.files import read_records
from model.errors import InputError

NAMES = ("instruction", "principle")  # of the field that says how to answer
PROMPT_ONLY = "prompt only"
PRINCIPLE_ONLY = "principle only"


@dataclass(frozen=True)
class Options:
    data: str = option(..., "JSON lines: instruction or principle, prompt, responses, best")
    limit: int | None = option(
        None, "only so many records: a quick look, stamped as not reportable", AT_LEAST_ONE
    )


def prepare(options: Options) -> Study:
    units = read_records(options.data, judged)[: options.limit]
    return Study(
        units=units,
        metrics=judged_pairs.METRICS,
        unit="records",
        headline="pmi",
        controls={
            PROMPT_ONLY: [changed(unit, instruction=None) for unit in units],
            PRINCIPLE_ONLY: [changed(unit, prompt=CONTENT_FREE) for unit in units],
        },
    )


def judged(record: Record, where: str) -> Judged:
    """The unit of a line. Raises InputError that names the line and the field."""
    named = [name for name in NAMES if record.get(name) is not None]
    if len(named) != 1:
        raise InputError(
            f"{where}: expected one of 'instruction' and 'principle', got "
            f"{' and '.join(named) or 'neither'}"
        )
    instruction = text(record, named[0], where)
    prompt = text(record, "prompt", where)
    responses = texts(record, "responses", where, least=2)
    if len(set(responses)) < len(responses):
        raise InputError(f"{where}: two of 'responses' are equal; none of them could be the best")
    best = record.get("best")
    if type(best) is not int or not 0 <= best < len(responses):
        raise InputError(
            f"{where}: 'best' must be a number from 0 to {len(responses) - 1}, which of the "
            f"responses is the best, got {best!r}"
        )
    questions = []
    for number, response in enumerate(responses):
        names = {"prompt": where, "response_to": where, "response": str(number)}
        questions.append(Question(prompt, instruction, response, names=names))
    return Judged(tuple(questions), best)


def changed(unit: Judged, **changes: str | None) -> Judged:
    """The same responses in another context."""
    questions = [replace(question, **changes) for question in unit.questions]
    return Judged(tuple(questions), unit.best)


SUITE = Suite("pairs", Options, prepare, lambda: judged_pairs.METRICS)
