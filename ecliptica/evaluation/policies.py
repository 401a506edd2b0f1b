"""Two policies, two authored responses to one prompt: which of them does the model take under
each? The unit of refusal and honesty."""

from dataclasses import dataclass

from ecliptica.evaluation import pmi
from ecliptica.evaluation.metrics import preference
from ecliptica.evaluation.questions import Question


@dataclass(frozen=True)
class Choice:
    """A unit: one prompt under two policies, and two responses to it."""

    kind: str  # the class of the request or question
    questions: tuple[tuple[Question, Question], ...]  # a policy: (first response, second response)
    share: float  # the class's share of all units

    def asked(self) -> list[Question]:
        """What `taken` reads."""
        asked = []
        for first, second in self.questions:
            asked += [*pmi.questions(first), *pmi.questions(second)]
        return asked

    def taken(self, answers) -> list[float]:
        """Under each policy 1 if the first response is preferred by PMI, 0 if the second is, 0.5
        on a tie."""
        return [
            preference(pmi.pmi(answers, first), pmi.pmi(answers, second))
            for first, second in self.questions
        ]
