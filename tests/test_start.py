"""What a command imports before it is known what is asked."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Runs main(words) of `module` for every list of words, in one process that may not import torch.
PROGRAM = """
import contextlib, io, sys
from importlib import import_module
from model.errors import InputError

sys.modules["torch"] = None  # any import of it raises
main = import_module({module!r}).main
for words in {calls!r}:
    shown = io.StringIO()
    try:
        with contextlib.redirect_stdout(shown):
            main(words)
    except SystemExit as end:
        assert end.code == 0 and "--help" in shown.getvalue(), words
    except InputError as error:
        assert "--hepl" in str(error), (words, error)
    else:
        raise AssertionError(f"{{words}}: neither a help nor a complaint")
"""


def without_torch(module, calls):
    program = PROGRAM.format(module=module, calls=calls)
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)


def test_no_help_of_evaluation_and_no_mistyped_flag_waits_for_torch():
    from ecliptica.evaluation import commands, suites

    needed = {
        "fidelity": ["--data", "x"],
        "pairs": ["--data", "x", "--model", "x", "--template", "x"],
        "kl": ["--data", "x", "--model", "x", "--template", "x"],
        "reward": ["--data", "x", "--model", "x", "--template", "x"],
        "contract": ["--data", "x", "--reward", "length", "--model", "x", "--template", "x"],
        "score": ["--data", "x", "--model", "x", "--template", "x"],
        "generate": ["--data", "x", "--model", "x", "--template", "x"],
    }
    calls = [["--help"]]
    for name in (*suites.names(), *commands.names()):
        asked = needed.get(name, ["--model", "x", "--template", "x"])
        calls += [[name, "--help"], [name, *asked, "--out", "x", "--hepl"]]
    done = without_torch("eval", calls)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "module",
    ["train", "ecliptica.isd.__main__", "ecliptica.keys", "ecliptica.evaluation.report.__main__"],
)
def test_no_help_of_another_command_waits_for_torch(module):
    done = without_torch(module, [["--help"]])
    assert done.returncode == 0, done.stderr
