"""Questions to a model and their answers: log pi(response | instruction, prompt), each asked once and kept in samples.jsonl.

The file is append-only, one line a cell. Starting a suite again scores only what is not there; --rescore reads it with no
model at all. A line is found again by the system's key (weights, adapter, template, dtype: see
systems.fingerprint) and a digest of the three texts, so no other model's and no other data's score can be taken for it.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from ecliptica.evaluation.scoring import context_ids, response_ids, score_stream
from ecliptica.files import append_lines, journal
from model.errors import InputError

RESPONSES_PER_DOCUMENT = (
    32  # a context is repeated for more: bounds memory, and what a kill can lose
)


@dataclass(frozen=True)
class Cell:
    """One question. `names` is for people who read samples.jsonl (prompt id, instruction id, ...) and no part of its identity."""

    instruction: str | None
    prompt: str
    response: str
    names: dict = field(default_factory=dict, compare=False)

    @property
    def digest(self):
        return hashlib.sha256(
            json.dumps([self.instruction, self.prompt, self.response]).encode()
        ).hexdigest()[:24]


def documents(cells):
    """[[Cell]]: those of one context, at most RESPONSES_PER_DOCUMENT; what is scored as one packed document."""
    contexts = {}
    for cell in cells:
        contexts.setdefault((cell.instruction, cell.prompt), []).append(cell)
    return [
        cells[at : at + RESPONSES_PER_DOCUMENT]
        for cells in contexts.values()
        for at in range(0, len(cells), RESPONSES_PER_DOCUMENT)
    ]


class Scores:
    """{Cell: (logp, tokens)} of one system, on disk. logp: float32 nats, summed over the response's tokens, end of turn included."""

    def __init__(self, path, key, label, system=None):
        """system: None to work from the file alone."""
        self.path, self.key, self.label, self.system = Path(path), key, label, system
        self.known = {}
        for line in journal(path):
            if line.get("key") == key and "logp" in line:
                self.known[line["cell"]] = line["logp"], line["tokens"]

    def ask(self, cells):
        """Score the cells that are not known yet; contexts are computed once for up to 32 responses each."""
        missing = {cell.digest: cell for cell in cells if cell.digest not in self.known}
        if not missing:
            return self
        if self.system is None:
            cell = next(iter(missing.values()))
            raise InputError(
                f"{self.path}: has no score of {self.label} for {cell.names or cell.prompt!r} (and {len(missing) - 1} more); "
                "it was made with other settings or not finished: run without --rescore"
            )
        parts = documents(missing.values())
        jobs = [
            (
                str(part[0].names or part[0].prompt),
                context_ids(self.system, part[0].prompt, part[0].instruction),
                [response_ids(self.system, cell.response) for cell in part],
            )
            for part in parts
        ]
        for index, (logps, tokens, _) in score_stream(self.system, jobs, self.label):
            self.known |= {
                cell.digest: (logp, count) for cell, logp, count in zip(parts[index], logps, tokens)
            }
            append_lines(
                self.path,
                [
                    {
                        "system": self.label,
                        "key": self.key,
                        "cell": cell.digest,
                        **cell.names,
                        "logp": logp,
                        "tokens": count,
                    }
                    for cell, logp, count in zip(parts[index], logps, tokens)
                ],
            )
        return self

    def __getitem__(self, cell):
        return self.known[cell.digest][0]

    def tokens(self, cell):
        return self.known[cell.digest][1]


class Measures:
    """{digest: number} of one system that are no scores (a divergence, a KL), in the same file under a `field` of their own."""

    def __init__(self, path, key, label, field, system=None):
        """key: what the number depends on beside the digest. system: None to work from the file alone."""
        self.path, self.key, self.label, self.field, self.system = (
            Path(path),
            key,
            label,
            field,
            system,
        )
        self.known = {
            line["cell"]: line[field]
            for line in journal(path)
            if line.get("key") == key and field in line
        }

    def ask(self, wanted, measure):
        """wanted: {digest: (names, what `measure` gets)}; what is not known yet is measured and written, one line each."""
        missing = {digest: of for digest, of in wanted.items() if digest not in self.known}
        if missing and self.system is None:
            names = next(iter(missing.values()))[0]
            raise InputError(
                f"{self.path}: has no {self.field} of {self.label} for {names} (and {len(missing) - 1} more); "
                "it was made with other settings or not finished: run without --rescore"
            )
        for digest, (names, of) in tqdm(
            missing.items(), desc=self.label, leave=False, disable=None
        ):
            self.known[digest] = measure(of)
            append_lines(
                self.path,
                [
                    {
                        "system": self.label,
                        "key": self.key,
                        "cell": digest,
                        **names,
                        self.field: self.known[digest],
                    }
                ],
            )
        return self

    def __getitem__(self, digest):
        return self.known[digest]
