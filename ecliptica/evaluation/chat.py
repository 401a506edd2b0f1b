"""A conversation, line by line: what each line does. The command `chat`."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ecliptica.evaluation import systems
from ecliptica.evaluation.dialogue import Answer, Dialogue
from ecliptica.evaluation.screen import Screen
from ecliptica.files import check_writable, write_lines
from model.errors import InputError

HELP = """\
/instruct TEXT       the alignment instruction from here on; without TEXT: none
/again               the last prompt once more, under the instruction that stands
/compare A | B | C   the last prompt under several instructions, side by side
/base                the last prompt, answered with the adapter off
/kl                  how far the last answer is from the reference, token by token
/save FILE           the conversation as JSON lines, for eval.py score and for training
/help                this
/quit                the end, as Ctrl-D; Ctrl-C stops an answer"""


def converse(options: Any) -> None:
    """The whole command; options: its flags. Raises InputError."""
    system = systems.load_one(options)
    if options.max_new_tokens >= system.window:
        raise InputError(
            f"--max-new-tokens {options.max_new_tokens}: the model's window is {system.window}, "
            "and a prompt needs room in it"
        )
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    screen = Screen(terminal, options.json)
    dialogue = Dialogue(system, options.instruction or None, options.max_new_tokens)
    dialogue.warm_up()
    Chat(dialogue, screen).until_the_end()


class Chat:
    """Reads lines, does what they say, and goes on after whatever goes wrong."""

    def __init__(self, dialogue: Dialogue, screen: Screen) -> None:
        self.dialogue = dialogue
        self.screen = screen
        self.saved_to: set[Path] = set()
        self.unsaved = False

    def until_the_end(self) -> None:
        """Every line of standard input; returns at its end or at /quit."""
        if self.screen.terminal:
            self.screen.say("A line is a prompt; /help lists the commands, Ctrl-D ends.")
        going_on = True
        while going_on:
            try:
                going_on = self._next()
            except KeyboardInterrupt:
                self.screen.say("\nNothing to stop; /quit or Ctrl-D ends.")
            except InputError as error:
                self.screen.say(str(error))
            except BrokenPipeError:
                raise
            except OSError as error:
                self.screen.say(f"{error.filename or 'output'}: {error.strerror or error}")
        if self.screen.terminal and self.unsaved:
            self.screen.say("The end; this conversation was not saved.")

    def _next(self) -> bool:
        """Read a line and do what it says; whether the conversation goes on. Raises InputError."""
        self.screen.invite()
        raw = sys.stdin.buffer.readline()
        if not raw:
            return False
        try:
            line = raw.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise InputError(
                f"that line is no UTF-8 text ({error.reason} at byte {error.start}) and was passed "
                "over; nothing else is lost"
            ) from error
        return not (line and self.obey(line))

    def obey(self, line: str) -> bool:
        """Do what a line says; whether it ends the conversation. Raises InputError."""
        if line.startswith("//"):
            self.prompt(line[1:])
            return False
        if not line.startswith("/"):
            self.prompt(line)
            return False
        name, _, text = line[1:].partition(" ")
        if name == "quit":
            return True
        commands: dict[str, Callable[[str], None]] = {
            "instruct": self.instruct,
            "again": self.again,
            "compare": self.compare,
            "base": self.base,
            "kl": self.kl,
            "save": self.save,
            "help": self.help,
        }
        if name not in commands:
            known = ", ".join(f"/{command}" for command in (*commands, "quit"))
            raise InputError(
                f"/{name}: no such command; there are {known}. A prompt that begins with / is "
                "written with //"
            )
        commands[name](text.strip())
        return False

    # What lines say

    def prompt(self, text: str) -> None:
        answer = self.dialogue.ask(text)
        if self._answered(answer):
            self.dialogue.keep(answer)

    def instruct(self, text: str) -> None:
        self.dialogue.instruction = text or None
        self.screen.say(f"From here on: {text}" if text else "From here on: no instruction.")

    def again(self, text: str) -> None:
        if text:
            raise InputError("/again takes no text; /instruct TEXT changes the instruction first")
        answer = self.dialogue.again(self.dialogue.instruction)
        if self._answered(answer):
            self.dialogue.keep(answer, replaces=True)

    def compare(self, text: str) -> None:
        instructions = [part.strip() for part in text.split("|")]
        if not all(instructions):
            raise InputError("/compare A | B | C: expected instructions with | between them")
        answers = [self.dialogue.again(instruction) for instruction in instructions]
        done = []
        for answer in answers:
            whole = self._made(answer)
            if answer.text.strip():
                self._note(answer)
                done.append(answer)
            if not whole:
                break
        self.screen.side_by_side(done, [answer.turn.instruction for answer in done])

    def base(self, text: str) -> None:
        if not self.dialogue.has_base:
            raise InputError("/base: the model has no adapter; every answer is the base's")
        last = self.dialogue.last
        instruction = last.turn.instruction if last else None
        answer = self.dialogue.again(instruction, base=True)
        if self.screen.terminal:
            self._made(answer)
            self.screen.side_by_side([answer, last], ["base", "with the adapter"])
        else:
            self._answered(answer, "base")
        if answer.text.strip():
            self._note(answer)

    def kl(self, text: str) -> None:
        self.screen.shades(self.dialogue.kl_of_last())

    def save(self, text: str) -> None:
        if not text:
            raise InputError("/save FILE: expected the name of a file")
        records = self.dialogue.records()
        if not records:
            raise InputError("/save: no answer yet; nothing to save")
        path = Path(text)
        if path.exists() and path.resolve() not in self.saved_to:
            raise InputError(f"/save {path}: exists already; choose another name")
        check_writable(path, "/save")
        write_lines(path, records)
        self.saved_to.add(path.resolve())
        self.unsaved = False
        pairs = sum("chosen" in record for record in records)
        self.screen.say(
            f"{path}: {len(records)} answers, {pairs} of them preferred to another to the same "
            "prompt"
        )

    def help(self, text: str) -> None:
        for line in HELP.splitlines():
            print(line, file=sys.stdout if self.screen.terminal else sys.stderr, flush=True)

    # Answers

    def _answered(self, answer: Answer, label: str | None = None) -> bool:
        """Show an answer while it is made; whether there is anything to keep."""
        if answer.left_out:
            self.screen.say(
                f"The history is too long for the window: the first {answer.left_out} turns are "
                "left out of what the model sees; /save has them."
            )
        try:
            self.screen.show(answer, self.dialogue.stream(answer), label)
        except KeyboardInterrupt:
            if self.screen.as_json and answer.text.strip():
                self.screen.show_whole(answer)
            self.screen.say("\n(stopped)")
        if not answer.text.strip():
            self.screen.say("The answer is empty; the turn is not part of the conversation.")
            return False
        self.unsaved = True
        return True

    def _made(self, answer: Answer) -> bool:
        """An answer to be shown later; whether it was not stopped."""
        try:
            for _ in self.dialogue.stream(answer):
                pass
        except KeyboardInterrupt:
            self.screen.say("\n(stopped)")
            return False
        return True

    def _note(self, answer: Answer) -> None:
        self.dialogue.note(answer)
        self.unsaved = True
