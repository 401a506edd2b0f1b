"""The grid that the switching metrics read: every prompt under every instruction, with its own
responses and those of its neighbours. A Cross is one prompt of it: a unit."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ecliptica.evaluation.questions import Question
from ecliptica.isd.bank import Entry

DISTRACTORS = 9  # other prompts that a prompt must be told from (prompt match)
RIVAL_PROMPTS = 4  # other prompts whose responses a response must beat (joint)
MEANT = "instruction"
NO_INSTRUCTION = "no instruction"
SCRAMBLED = "scrambled prompt"
CONTROLS = (NO_INSTRUCTION, SCRAMBLED)


class Grid:
    """Prompts crossed with instructions, and the questions that metrics ask about them.

    condition MEANT: as it is meant. NO_INSTRUCTION: the context is the prompt alone. SCRAMBLED:
    the prompts are dealt out wrongly, each response judged under a prompt of another domain: what
    is left is the instruction's.
    """

    def __init__(
        self,
        bank: Sequence[Entry],
        entries: Sequence[Entry],
        wording: dict[str, str],
        condition: str = MEANT,
        suffix: str = "",
        asked: Mapping[str, Sequence[str]] | None = None,
    ):
        """bank: where distractors come from; entries: the units; wording: {instruction id: text};
        suffix: text behind every prompt; asked: {prompt id: those of its responses that are asked}
        in an incomplete design (design.py), None: all."""
        self.wording = wording
        self.names = list(wording)
        self.condition = condition
        self.suffix = suffix
        self.prompts = {entry.id: entry.prompt for entry in bank}
        if condition == SCRAMBLED:
            self.prompts = dealt_wrongly(bank)
        self.asked = asked
        self.crosses = [Cross(self, entry, bank) for entry in entries]


class Cross:
    """One prompt x of a grid, under all of its instructions.

    names: the instructions, the rows J; asked: those whose responses are asked, the columns K. In
    a complete design the two are the same.
    """

    def __init__(self, grid: Grid, entry: Entry, bank: Sequence[Entry]):
        self.grid = grid
        self.entry = entry
        self.names = grid.names
        self.asked = grid.names
        if grid.asked is not None:
            self.asked = list(grid.asked[entry.id])
        self.distractors = distractors(entry, bank)
        answered = [other for other in self.distractors if set(self.names) <= set(other.responses)]
        self.rival_prompts = answered[:RIVAL_PROMPTS]

    def question(self, j: str, owner: Entry, k: str, at: Entry | None = None) -> Question:
        """log pi(y_{owner,k} | I_j, x), x the prompt of this cross, or of `at`."""
        asked = at or self.entry
        instruction = self.grid.wording[j]
        if self.grid.condition == NO_INSTRUCTION:
            instruction = None
        names = {
            "condition": self.grid.condition,
            "prompt": asked.id,
            "instruction": j,
            "response_to": owner.id,
            "response": k,
        }
        prompt = self.grid.prompts[asked.id] + self.grid.suffix
        return Question(prompt, instruction, owner.responses[k], names=names)

    def rows_of_asked(self) -> list[int]:
        """Of each asked response, the number of its own instruction."""
        return [self.names.index(name) for name in self.asked]

    def spread(self, values_K: Sequence[float]) -> list[float]:
        """A value of each asked response as one of each instruction: NaN for those not asked."""
        by_name = dict(zip(self.asked, values_K, strict=True))
        return [by_name.get(name, float("nan")) for name in self.names]


def columns(cross: Cross) -> Iterator[Question]:
    """Every asked response to the prompt under every instruction, instruction by instruction."""
    for j in cross.names:
        for k in cross.asked:
            yield cross.question(j, cross.entry, k)


def read_columns(cross: Cross, answers) -> np.ndarray:
    """s_JK of one prompt: a row for every instruction, a column for every asked response."""
    scores = [answers[question] for question in columns(cross)]
    return np.array(scores).reshape(len(cross.names), len(cross.asked))


def square(cross: Cross) -> Iterator[Question]:
    """Every asked response to the prompt under the instructions of the asked ones, instruction by
    instruction."""
    for j in cross.asked:
        for k in cross.asked:
            yield cross.question(j, cross.entry, k)


def read_square(cross: Cross, answers) -> np.ndarray:
    """s_KK of one prompt: the asked responses under their own instructions."""
    scores = [answers[question] for question in square(cross)]
    return np.array(scores).reshape(len(cross.asked), len(cross.asked))


def distractors(entry: Entry, bank: Sequence[Entry]) -> list[Entry]:
    """The prompts that `entry` must be told from: its own domain first, its own split first, those
    with references first."""
    others = [other for other in bank if other.id != entry.id]
    others.sort(
        key=lambda other: (
            other.domain != entry.domain,
            other.split != entry.split,
            not other.responses,
        )
    )
    return others[:DISTRACTORS]


def dealt_wrongly(bank: Sequence[Entry]) -> dict[str, str]:
    """{prompt id: the text of another prompt}: half the bank further on in the order of ids, so of
    another domain wherever no domain has half."""
    ordered = sorted(bank, key=lambda entry: entry.id)
    half = max(1, len(ordered) // 2)
    further_on = ordered[half:] + ordered[:half]
    return {entry.id: other.prompt for entry, other in zip(ordered, further_on)}


def interaction(s_JK: np.ndarray) -> np.ndarray:
    """Scores with instruction and response means taken out: what depends on the pair alone
    (nats)."""
    return s_JK - s_JK.mean(0, keepdims=True) - s_JK.mean(1, keepdims=True) + s_JK.mean()
