"""`eval.py chat` through a pipe (in this process) and through a pseudo-terminal: its answers are
those of `generate`, its KL that of `kl`, and nothing that goes wrong loses anything."""

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest

import eval as evaluate
from ecliptica.data import formats
from ecliptica.evaluation import dialogue as dialogues
from ecliptica.evaluation.dialogue import Dialogue
from ecliptica.evaluation.systems import load
from model.conversation import Thread
from model.errors import InputError
from model.generate import generate
from model.weights import load_model
from tests.conftest import ROOT, write_jsonl
from tests.evaluation.conftest import lines_of

FEW = ("--max-new-tokens", "5")


class Pipe(io.TextIOWrapper):
    """Standard input that is no terminal."""

    def __init__(self, text):
        data = text if isinstance(text, bytes) else text.encode()
        super().__init__(io.BytesIO(data), encoding="utf-8")


@pytest.fixture
def chat(tiny, adapter, monkeypatch, capsys):
    """chat(lines, *options) -> (lines of standard output, standard error)."""

    def of(lines, *options):
        monkeypatch.setattr("sys.stdin", Pipe(lines))
        words = ["chat", "--model", tiny, "--adapter", adapter, "--template", "chatml"]
        evaluate.main([str(word) for word in [*words, *FEW, *options]])
        captured = capsys.readouterr()
        return captured.out.splitlines(), captured.err

    return of


def generated(tiny, adapter, tmp_path, records, base=False):
    """The texts of `eval.py generate`."""
    data, out = write_jsonl(tmp_path / "in.jsonl", records), tmp_path / "out.jsonl"
    words = ["generate", "--model", tiny, "--template", "chatml", "--data", data, "--out", out]
    words += FEW if base else [*FEW, "--adapter", adapter]
    evaluate.main([str(word) for word in words])
    return [line["text"] for line in lines_of(out)]


SCRIPT = """\
What of rain?
/instruct Be brief.
And snow?
/again
/instruct Be kind.
/again
/compare Be loud. | Be calm.
/base
"""


def test_every_answer_is_what_generate_says_for_the_same_history(chat, tiny, adapter, tmp_path):
    out, _ = chat(SCRIPT, "--json")
    answers = [json.loads(line) for line in out]
    assert [(a["instruction"], a["prompt"]) for a in answers] == [
        (None, "What of rain?"),
        ("Be brief.", "And snow?"),
        ("Be brief.", "And snow?"),
        ("Be kind.", "And snow?"),
        ("Be loud.", "And snow?"),
        ("Be calm.", "And snow?"),
        ("Be kind.", "And snow?"),
    ]
    assert all(set(answer) == {"instruction", "prompt", "text"} for answer in answers[:6])
    assert answers[6]["system"] == "base"

    # The same histories as chat lists.
    first = {"role": "user", "content": "What of rain?"}
    said = [first, {"role": "assistant", "content": answers[0]["text"]}]
    records = [{"prompt": [first]}]
    for answer in answers[1:]:
        system = {"role": "system", "content": answer["instruction"]}
        records.append({"prompt": [system, *said, {"role": "user", "content": "And snow?"}]})
    want = generated(tiny, adapter, tmp_path, records[:6])
    want += generated(tiny, adapter, tmp_path, records[6:], base=True)
    assert [answer["text"] for answer in answers] == want
    assert len(set(want)) > 3, "the answers say what they depend on"


def test_a_turn_keeps_the_instruction_it_was_asked_under(tiny, adapter):
    system = load(tiny, "chatml", adapter)
    talk = Dialogue(system, "Be brief.", 3)
    for prompt, instruction in (("Hi?", "Be brief."), ("And now?", "Be kind."), ("Why?", None)):
        talk.instruction = instruction
        answer = talk.ask(prompt)
        list(talk.stream(answer))
        talk.keep(answer)
    text = system.tokenizer.decode(
        talk._context(talk.last.turn, talk.last.before), skip_special=False
    )
    assert text.index("Be brief.") < text.index("Hi?") < text.index("Be kind.")
    assert text.index("Be kind.") < text.index("And now?") < text.index("Why?")
    assert text.endswith("<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n")


def test_only_what_is_new_is_computed_and_the_tokens_are_the_same(tiny):
    model = load_model(tiny)
    thread = Thread(model)
    first = list(range(5, 45))
    answer = list(thread.answer(first, 6, []))
    assert answer == generate(model, [first], 6, [])[0]
    computed = thread.computed
    longer = [*first, *answer, 7, 8, 9]
    assert list(thread.answer(longer, 6, [])) == generate(model, [longer], 6, [])[0]
    assert thread.computed - computed == 4 + 5, "three new tokens, the last answer's last, and on"

    # Another branch; a cache that has to grow; one left at its second token.
    branch = [*first[:20], *range(60, 80)]
    assert list(thread.answer(branch, 6, [])) == generate(model, [branch], 6, [])[0]
    long = [n % 900 for n in range(700)]
    assert list(thread.answer(long, 3, [])) == generate(model, [long], 3, [])[0]
    next(thread.answer(first, 6, []))
    assert list(thread.answer(longer, 6, [])) == generate(model, [longer], 6, [])[0]


def test_the_kl_of_the_last_answer_is_that_of_the_command(chat, tiny, adapter, tmp_path):
    out, err = chat("What of rain?\n/kl\n", "--json")
    answer, kl = (json.loads(line) for line in out)
    assert kl["kl"] == pytest.approx(sum(token["kl"] for token in kl["tokens"]))
    data = write_jsonl(tmp_path / "in.jsonl", [{"prompt": "What of rain?"}])
    words = ["kl", "--model", tiny, "--adapter", adapter, "--template", "chatml", "--answers"]
    words += [*FEW, "--data", data, "--out", tmp_path / "kl.jsonl"]
    evaluate.main([str(word) for word in words])
    (line,) = lines_of(tmp_path / "kl.jsonl")
    assert line["text"] == answer["text"]
    assert kl["kl"] == pytest.approx(line["kl"][0], rel=1e-5)
    assert len(kl["tokens"]) == line["tokens"][0]
    assert "exact KL[policy || reference]" in err


def test_what_is_saved_is_scored_and_trained_on(chat, tiny, adapter, tmp_path):
    path = tmp_path / "talk.jsonl"
    out, err = chat(f"{SCRIPT}/save {path}\n", "--json")
    assert "7 answers, " in err
    records = lines_of(path)
    texts = [json.loads(line)["text"] for line in out]
    assert [record["responses"][0] for record in records] == texts

    # Scored with its history: as the thread that made it would.
    words = ["score", "--model", tiny, "--adapter", adapter, "--template", "chatml"]
    words += ["--data", path, "--out", tmp_path / "scores.jsonl"]
    evaluate.main([str(word) for word in words])
    assert len(lines_of(tmp_path / "scores.jsonl")) == len(records)

    # Trained on: an answer under the new instruction against one under another.
    skipped = []
    preferences = formats.read(path, "messages", "skip", skipped)
    assert len(preferences) + len(skipped) == 7
    pairs = {(p.instruction, p.responses) for p in preferences}
    kind = next(p for p in preferences if p.instruction == "Be kind.")
    assert kind.responses[0] == texts[3] and kind.responses[1] != texts[3]
    assert kind.turns == (("What of rain?", texts[0]),) and kind.prompt == "And snow?"
    assert len(pairs) >= 3


def test_plain_lines_through_a_pipe(chat):
    out, err = chat("What of rain?\n/compare Be loud. | Be calm.\n/base\n")
    assert len(out) == 4
    assert out[1].startswith("[Be loud.] ") and out[2].startswith("[Be calm.] ")
    assert out[3].startswith("[base] ")
    assert not err


BROKEN = [
    (b"\xff\xfe Hi\n", "no UTF-8 text"),
    (b"/kl\n", "no answer yet"),
    (b"/again\n", "no prompt yet"),
    (b"/compare a | | b\n", "expected instructions with | between"),
    (b"/save\n", "expected the name of a file"),
    (b"/save /nowhere/x.jsonl\n", "nothing to save"),
    (b"/instrukt x\n", "no such command; there are /instruct"),
    (b"word " * 5000 + b"\n", "the model's window is 4096"),
]


@pytest.mark.parametrize("line, word", BROKEN, ids=[word for _, word in BROKEN])
def test_a_broken_line_is_a_word_and_nothing_is_lost(line, word, chat):
    want, _ = chat("What of rain?\n", "--json")
    out, err = chat(line + b"What of rain?\n", "--json")
    assert word in err and len(err.splitlines()) == 1
    assert out == want


def test_a_file_that_is_there_is_not_written_over(chat, tmp_path):
    path = tmp_path / "there.jsonl"
    path.write_text("mine")
    _, err = chat(f"Hi?\n/save {path}\n/save {tmp_path}/no/x\n")
    assert "exists already" in err and "no such directory" in err
    assert path.read_text() == "mine"
    new = tmp_path / "new.jsonl"
    chat(f"Hi?\n/save {new}\nAnd?\n/save {new}\n")
    assert len(lines_of(new)) == 2, "its own file may be written again"


def test_a_long_history_loses_its_oldest_turns_and_says_so(tiny, adapter, chat):
    system = load(tiny, "chatml", adapter)
    talk = Dialogue(system, None, 5)
    for _ in range(3):
        answer = talk.ask("word " * 1700)
        list(talk.stream(answer))
        talk.keep(answer)
    assert answer.left_out == 1 and len(answer.before) == 1
    assert len(talk.records()) == 3, "saved whole"
    with pytest.raises(InputError, match="say it in fewer words"):
        talk.ask("word " * 5000)
    _, err = chat(("word " * 1700 + "\n") * 3)
    assert "the first 1 turns are left out" in err


def test_ctrl_c_stops_the_answer_and_not_the_program(chat, monkeypatch):
    """The interrupt comes at the third token of the first answer; one call is the warm-up."""
    real = dialogues.Thread.answer
    calls = []

    def interrupted(self, *arguments):
        calls.append(0)
        for number, token in enumerate(real(self, *arguments)):
            if len(calls) == 2 and number == 2:
                raise KeyboardInterrupt
            yield token

    monkeypatch.setattr(dialogues.Thread, "answer", interrupted)
    out, err = chat("What of rain?\nAnd snow?\n", "--json")
    first, second = (json.loads(line) for line in out)
    assert "(stopped)" in err and first["text"]
    monkeypatch.setattr(dialogues.Thread, "answer", real)
    whole, _ = chat("What of rain?\n", "--json")
    assert json.loads(whole[0])["text"].startswith(first["text"].rstrip("\ufffd"))
    assert second["prompt"] == "And snow?" and second["text"]


def test_no_template_and_no_room_are_refused(tiny):
    words = ["chat", "--model", str(tiny), "--template"]
    with pytest.raises(InputError, match="cannot tell turns apart"):
        evaluate.main([*words, "none"])
    with pytest.raises(InputError, match="a prompt needs room"):
        evaluate.main([*words, "chatml", "--max-new-tokens", "4096"])


# Through a pseudo-terminal


class Terminal:
    """The program at a pseudo-terminal."""

    def __init__(self, *words):
        self.master, slave = pty.openpty()
        command = [sys.executable, "eval.py", *map(str, words)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)
        self.text = ""

    def type(self, text):
        os.write(self.master, text.encode())

    def until(self, pattern, seconds=60):
        """What is shown up to a match of `pattern`, which is then forgotten."""
        end = time.monotonic() + seconds
        while not (match := re.search(pattern, self.text)):
            ready, _, _ = select.select([self.master], [], [], max(0, end - time.monotonic()))
            assert ready, f"no {pattern!r} in {self.text!r}"
            try:
                data = os.read(self.master, 4096)
            except OSError:  # Linux's end of file of a terminal
                data = b""
            assert data, f"ended before {pattern!r}: {self.text!r}"
            self.text += data.decode(errors="replace")
        shown, self.text = self.text[: match.end()], self.text[match.end() :]
        return shown


def test_a_conversation_at_a_terminal(tiny, adapter, tmp_path):
    words = ["chat", "--model", tiny, "--adapter", adapter, "--template", "chatml"]
    terminal = Terminal(*words, "--max-new-tokens", "2000", "--instruction", "Be kind.")
    try:
        terminal.until("/help lists the commands.*\n> ")
        terminal.type("Hi?\n")
        start = time.monotonic()
        terminal.until(r"Hi\?\r\n.")
        # Well under 2 s on an idle machine; the bound leaves room for other work beside it.
        assert time.monotonic() - start < 8, "the first token"

        # Ctrl-C in an answer of 2000 tokens; then the conversation goes on.
        os.killpg(terminal.process.pid, signal.SIGINT)
        terminal.until(r"\(stopped\)\r\n> ")
        terminal.type("/kl\n")
        shown = terminal.until("a token\r\n> ")
        assert "\x1b[48;5;" in shown and "exact KL[policy || reference]" in shown
        os.killpg(terminal.process.pid, signal.SIGINT)
        terminal.until("Nothing to stop; /quit or Ctrl-D ends.\r\n> ")
        terminal.type(f"/save {tmp_path}/t.jsonl\n")
        terminal.until("1 answers, .*\r\n> ")
        terminal.type("\x04")
        assert terminal.process.wait(20) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.master)
    (record,) = lines_of(tmp_path / "t.jsonl")
    assert record["prompt"][0] == {"role": "system", "content": "Be kind."}
    assert record["responses"][0].strip()
