"""The cells of the switching metrics: every prompt x under every instruction, its own responses, and those of its neighbours."""

import numpy as np

from ecliptica.evaluation.cells import Cell
from ecliptica.evaluation.metrics import column_accuracy, joint, prompt_match, strict_switch, switch

DISTRACTORS, RIVALS = 9, 4
CONDITIONS = ("instruction", "no instruction", "scrambled prompt")
BY_INSTRUCTION = ("joint", "column_accuracy")  # the metrics that fall apart by instruction


class Grid:
    """Prompts x instructions with references, and the questions that the metrics ask about them.

    condition: "instruction": as it is meant. "no instruction": the context is the prompt alone. "scrambled prompt": the
    prompts are dealt out wrongly, each response judged under a prompt of another domain: what is left is the instruction's.
    """

    def __init__(self, bank, entries, wording, condition="instruction", suffix=""):
        """bank: where distractor prompts come from; entries: what is measured; wording: {instruction id: text}."""
        self.entries, self.wording, self.names, self.condition, self.suffix = (
            entries,
            wording,
            list(wording),
            condition,
            suffix,
        )
        self.others = {entry.id: distractors(entry, bank) for entry in entries}
        self.said = {entry.id: entry.prompt for entry in bank}
        if condition == "scrambled prompt":
            self.said = dealt_wrongly(bank)
        self.rivals = {
            id: [other for other in others if set(self.names) <= set(other.responses)][:RIVALS]
            for id, others in self.others.items()
        }

    def cell(self, j, entry, owner, k):
        """log pi(y_{owner,k} | I_j, x of entry)."""
        names = {
            "condition": self.condition,
            "prompt": entry.id,
            "instruction": j,
            "response_to": owner.id,
            "response": k,
        }
        return Cell(
            None if self.condition == "no instruction" else self.wording[j],
            self.said[entry.id] + self.suffix,
            owner.responses[k],
            names,
        )

    def prior(self, owner, k):
        """log pi(y) in a context that says nothing: what PMI subtracts."""
        return Cell(
            None,
            joint.CONTENT_FREE,
            owner.responses[k],
            {"condition": "content-free", "response_to": owner.id, "response": k},
        )

    def matrix(self, entry):
        """[[Cell of response k under instruction j]]."""
        return [[self.cell(j, entry, entry, k) for k in self.names] for j in self.names]

    def candidates(self, entry, n):
        """The rivals of y_{x,j} for j = names[n]: (owner, k) of the same prompt, of other prompts under j, of other prompts under another k."""
        j = self.names[n]
        same = [(entry, k) for k in self.names if k != j]
        shifted = [
            self.names[(n + 1 + m % (len(self.names) - 1)) % len(self.names)] for m in range(RIVALS)
        ]
        return (
            same
            + [(other, j) for other in self.rivals[entry.id]]
            + [(other, shifted[m]) for m, other in enumerate(self.rivals[entry.id])]
        )

    def cells(self):
        """All that `values` reads."""
        for entry in self.entries:
            yield from (cell for row in self.matrix(entry) for cell in row)
            yield from self.joint_cells(entry)
            yield from (
                self.cell(j, other, entry, j) for j in self.names for other in self.others[entry.id]
            )

    def joint_cells(self, entry):
        """What `joint` reads of one prompt."""
        for n, j in enumerate(self.names):
            for owner, k in [(entry, j), *self.candidates(entry, n)]:
                yield self.cell(j, entry, owner, k)
                yield self.prior(owner, k)

    def values(self, scores):
        """{metric: one value a prompt}, and what goes with them: the strict switch's chance level and the mean interaction matrix."""
        generator, found, nulls, matrices = (
            np.random.default_rng(0),
            {name: [] for name in METRICS},
            [],
            [],
        )
        for entry in self.entries:
            s_JK = self.square(scores, entry)
            found["switch"].append(switch.value(s_JK))
            found["strict_switch"].append(strict_switch.value(s_JK))
            found["column_accuracy"].append(column_accuracy.value(s_JK))
            found["prompt_match"].append(
                prompt_match.value(
                    np.diag(s_JK),
                    [
                        [scores[self.cell(j, other, entry, j)] for other in self.others[entry.id]]
                        for j in self.names
                    ],
                )
            )
            found["joint"].append(joint.value(*self.pmi(scores, entry)))
            nulls.append(strict_switch.chance(s_JK, generator))
            matrices.append(interaction(s_JK))
        return found, float(np.mean(nulls)), np.mean(matrices, axis=0)

    def by_instruction(self, scores):
        """{metric: one value a prompt (row) and instruction (column)} of the two metrics that fall apart by instruction."""
        return {
            metric: np.array([self.shares(metric, scores, entry) for entry in self.entries])
            for metric in BY_INSTRUCTION
        }

    def shares(self, metric, scores, entry):
        """[value of instruction j] of one prompt; metric: one of BY_INSTRUCTION."""
        if metric == "joint":
            return joint.by_instruction(*self.pmi(scores, entry))
        return column_accuracy.by_response(self.square(scores, entry))

    def needs(self, metric, entry):
        """The cells that `shares` reads."""
        return (
            self.joint_cells(entry)
            if metric == "joint"
            else (cell for row in self.matrix(entry) for cell in row)
        )

    def square(self, scores, entry):
        """s_JK of one prompt."""
        return np.array([[scores[cell] for cell in row] for row in self.matrix(entry)])

    def pmi(self, scores, entry):
        """(of y_{x,j}, [of its rivals]) in (I_j, x) by instruction j: what the joint metric compares."""

        def pmi(j, owner, k):
            return scores[self.cell(j, entry, owner, k)] - scores[self.prior(owner, k)]

        own = [pmi(j, entry, j) for j in self.names]
        return own, [
            [pmi(j, owner, k) for owner, k in self.candidates(entry, n)]
            for n, j in enumerate(self.names)
        ]

    def chances(self, strict):
        """{metric: its chance level in this run}."""
        rivals = np.mean(
            [
                joint.chance(len(self.candidates(entry, n)))
                for entry in self.entries
                for n in range(len(self.names))
            ]
        )
        match = np.mean([prompt_match.chance(len(self.others[entry.id])) for entry in self.entries])
        return {
            "joint": float(rivals),
            "column_accuracy": column_accuracy.chance(len(self.names)),
            "prompt_match": float(match),
            "switch": switch.CHANCE,
            "strict_switch": strict,
        }


METRICS = {
    "joint": joint.TITLE,
    "column_accuracy": column_accuracy.TITLE,
    "prompt_match": prompt_match.TITLE,
    "switch": switch.TITLE,
    "strict_switch": strict_switch.TITLE,
}


def distractors(entry, bank):
    """The prompts that `entry` must be told from: its own domain first, its own split first, those with references first."""
    others = [other for other in bank if other.id != entry.id]
    others.sort(
        key=lambda other: (
            other.domain != entry.domain,
            other.split != entry.split,
            not other.responses,
        )
    )
    return others[:DISTRACTORS]


def dealt_wrongly(bank):
    """{prompt id: the text of another prompt}: half the bank further on in the order of ids, so of another domain wherever no domain has half."""
    ordered = sorted(bank, key=lambda entry: entry.id)
    return {
        entry.id: ordered[(n + max(1, len(ordered) // 2)) % len(ordered)].prompt
        for n, entry in enumerate(ordered)
    }


def interaction(s_JK):
    """Scores with instruction and response means taken out: what depends on the pair alone (nats)."""
    return s_JK - s_JK.mean(0, keepdims=True) - s_JK.mean(1, keepdims=True) + s_JK.mean()
