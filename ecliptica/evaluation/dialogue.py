"""A conversation with a system: turns, answers as they are made, what is compared, what is saved.

Every turn keeps the instruction it was asked under. An answer that was asked for again stays beside
the turn: two answers to one prompt, the newer under the instruction that stands, are a preference.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from ecliptica.data.packing import pack
from ecliptica.data.templates import Turn, encode_pieces, history
from ecliptica.evaluation.answers import ends
from ecliptica.evaluation.scoring import response_ids
from ecliptica.evaluation.systems import System
from ecliptica.policy import adapter_off_reference, response_rows
from ecliptica.schema import Encoded
from model.conversation import Thread
from model.errors import InputError


@dataclass
class Answer:
    """One answer, whole or as far as it came."""

    turn: Turn  # without its answer
    before: tuple[Turn, ...]  # the turns that the model saw
    ids: list[int] = field(default_factory=list)
    text: str = ""
    base: bool = False  # of the model with its adapter off
    left_out: int = 0  # turns at the beginning that the window had no room for

    def record(self) -> dict[str, Any]:
        """As a pipe prints it."""
        line = {"instruction": self.turn.instruction, "prompt": self.turn.prompt, "text": self.text}
        return line | {"system": "base"} if self.base else line


class Dialogue:
    """The turns so far, and a thread of keys and values for the system and for its base."""

    def __init__(self, system: System, instruction: str | None, max_new_tokens: int) -> None:
        self.system = system
        self.instruction = instruction
        self.max_new_tokens = max_new_tokens
        self.turns: list[Turn] = []  # answered ones
        self.answers: list[Answer] = []  # every one ever made, in order
        self.last: Answer | None = None  # the answer to the last of `turns`
        self._threads = {base: Thread(system.model) for base in (False, True)}

    def warm_up(self) -> None:
        """Run what contexts begin with: tokenizer and model are then ready for the first prompt."""
        context = self._context(Turn("Hello.", self.instruction), ())
        with self.system.switched():
            for _ in self._threads[False].answer(context, 1, ends(self.system)):
                pass

    @property
    def has_base(self) -> bool:
        return len(self.system.directories) > 1

    def ask(self, prompt: str) -> Answer:
        """The next turn, not answered yet. Raises InputError if it does not fit the window."""
        return self._fitting(Turn(prompt, self.instruction), self.turns)

    def again(self, instruction: str | None, base: bool = False) -> Answer:
        """The last prompt once more, under `instruction`. Raises InputError if there is none."""
        if self.last is None:
            raise InputError("no prompt yet: say something first")
        turn = Turn(self.last.turn.prompt, instruction)
        answer = self._fitting(turn, self.turns[:-1])
        answer.base = base
        return answer

    def _fitting(self, turn: Turn, before: list[Turn]) -> Answer:
        """With as many of the latest turns before it as the window has room for."""
        room = self.system.window - self.max_new_tokens
        for left_out in range(len(before) + 1):
            seen = tuple(before[left_out:])
            length = len(self._context(turn, seen))
            if length <= room:
                return Answer(turn, seen, left_out=left_out)
        raise InputError(
            f"{length} tokens and {self.max_new_tokens} new ones; the model's window is "
            f"{self.system.window}: say it in fewer words"
        )

    def _context(self, turn: Turn, before: tuple[Turn, ...]) -> list[int]:
        pieces = self.system.template.conversation([*before, turn])
        return encode_pieces(self.system.tokenizer, pieces)

    # Answers

    def stream(self, answer: Answer) -> Iterator[str]:
        """Pieces of the answer's text as tokens come; half a character waits for its rest."""
        system = self.system.without_adapter() if answer.base else self.system
        context = self._context(answer.turn, answer.before)
        thread = self._threads[answer.base]
        with system.switched():
            for token in thread.answer(context, self.max_new_tokens, ends(system)):
                answer.ids.append(token)
                text = system.tokenizer.decode(answer.ids)
                whole = text.rstrip("\ufffd")
                if whole.startswith(answer.text) and len(whole) > len(answer.text):
                    new = whole[len(answer.text) :]
                    answer.text = whole
                    yield new
        text = system.tokenizer.decode(answer.ids)
        rest = text[len(answer.text) :]
        answer.text = text
        if rest:
            yield rest

    def keep(self, answer: Answer, replaces: bool = False) -> None:
        """The answer becomes the history's; replaces: of the last turn, asked again."""
        self.answers.append(answer)
        if replaces:
            self.turns.pop()
        turn = answer.turn
        self.turns.append(Turn(turn.prompt, turn.instruction, answer.text))
        self.last = answer

    def note(self, answer: Answer) -> None:
        """An answer beside the conversation: compared, or the base's. Saved, no part of history."""
        self.answers.append(answer)

    # The distance to the reference

    def kl_of_last(self) -> list[tuple[str, float]]:
        """(text, exact KL[policy || reference] in nats) of every token of the last answer and its
        end of turn. Raises InputError where there is no answer, or no adapter to turn off."""
        if not self.has_base:
            raise InputError("/kl: the model has no adapter, so no reference to be far from")
        if self.last is None:
            raise InputError("no answer yet: say something first")
        answer = self.last
        ids = list(answer.ids)
        if len(ids) < self.max_new_tokens:
            ids.append(response_ids(self.system, "")[-1])
        context = tuple(self._context(answer.turn, answer.before))
        example = Encoded("the last answer", context, (tuple(ids),))
        batch = pack([example]).to(self.system.model.head_weight_VD.device)
        with torch.no_grad():
            reference = adapter_off_reference(self.system.model)
            rows = response_rows(self.system.model, batch, reference, grad=False)
        tokenizer = self.system.tokenizer
        texts = [tokenizer.decode([token], skip_special=False) for token in ids]
        return list(zip(texts, rows.kl_R.tolist(), strict=True))

    # What is saved

    def records(self) -> list[dict[str, Any]]:
        """A line an answer: what `score` reads ("prompt" as a chat list, "responses"), and where
        the same prompt was answered otherwise under another instruction, "chosen" and "rejected",
        which training reads (data.format = "messages")."""
        lines = []
        for number, answer in enumerate(self.answers):
            if not answer.text.strip():
                continue
            line = {
                "id": f"turn-{number + 1}",
                "prompt": messages(answer),
                "responses": [answer.text],
            }
            if answer.base:
                line["system"] = "base"
            other = self._other(answer)
            if other is not None and not answer.base:
                line |= {"chosen": answer.text, "rejected": other.text}
            lines.append(line)
        return lines

    def _other(self, answer: Answer) -> Answer | None:
        """The latest answer to the same prompt, at the same place, under another instruction."""
        for other in reversed(self.answers):
            same_place = other.turn.prompt == answer.turn.prompt and other.before == answer.before
            differs = other.turn.instruction != answer.turn.instruction
            written = other.text.strip() and other.text != answer.text
            if same_place and differs and written and not other.base:
                return other
        return None


def messages(answer: Answer) -> list[dict[str, str]]:
    """The context of an answer as a chat list: the instruction as the system's message, which
    training and scoring set beside the last prompt."""
    said = []
    if answer.turn.instruction is not None:
        said.append({"role": "system", "content": answer.turn.instruction})
    for user, assistant in history(answer.before):
        said.append({"role": "user", "content": user})
        said.append({"role": "assistant", "content": assistant})
    said.append({"role": "user", "content": answer.turn.prompt})
    return said
