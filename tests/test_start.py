"""What a command imports before it is known what is asked."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_help_of_training_does_not_wait_for_torch():
    program = (
        "import sys, train\n"
        "try:\n    train.main(['--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--plan" in done.stdout, done.stderr
