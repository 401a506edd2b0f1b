"""What the benchmarks of training share: a small recipe on a tiny random model, and processes."""

import os
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests import conftest  # noqa: E402

# Many runs in one torchrun: starting its processes takes longer than a run.
SEVERAL = """
import sys
from ecliptica.config import load
from ecliptica.recipe import Config
from ecliptica.running.ranks import joined
from ecliptica.training.loop import train
with joined() as ranks:
    for line in open(sys.argv[1]):
        recipe, *overrides = line.split()
        train(load(Config, recipe, overrides), ranks)
"""


def write_recipe(place: Path, model: str, lines: str) -> Path:
    """A recipe on a tiny model with the tokenizer of `model`, and a dozen preferences; lines: its
    further sections, as TOML."""
    tiny = conftest.write_tiny(place / "tiny", Path(model))
    data = conftest.write_jsonl(place / "train.jsonl", conftest.some_preferences())
    recipe = place / "small.toml"
    recipe.write_text(
        f'[model]\npath = "{tiny}"\ndtype = "float32"\n[data]\ntrain = "{data}"\n{lines}'
    )
    return recipe


def launcher(processes: int) -> list[str]:
    """python, or torchrun with so many processes."""
    if processes == 1:
        return [sys.executable]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *torchrun]


def environment(threads: int) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}


def run_all(place: Path, processes: int, commands: list[str]) -> None:
    """The runs of several command lines (recipe and overrides), one after another."""
    (place / "several.py").write_text(SEVERAL)
    (place / "lines").write_text("\n".join(commands))
    done = subprocess.run(
        [*launcher(processes), f"{place}/several.py", f"{place}/lines"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment(threads=1),
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)


def weights(run: Path) -> dict:
    """{name: tensor} of a finished run's export."""
    tensors = {}
    for path in sorted((run / "final").glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors
