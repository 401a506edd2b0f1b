"""Imports run one way, and the peers stay out of the run time."""

import ast
import subprocess
import sys
from pathlib import Path

import kernels

ROOT = Path(__file__).parent.parent
PEERS = {"transformers", "peft", "trl"}
BELOW = {
    "kernels": set(),
    "model": {"kernels"},
    "ecliptica": {"kernels", "model"},
}  # who may import whom, beside itself
FLOORS = [  # ecliptica's own floors, from the ground up
    {"schema", "files", "fields"},
    {"config", "policy", "objectives", "isd"},
    {"data"},
    {"training", "evaluation"},
]


def imported(path):
    """Dotted names that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_packages_import_downwards_only():
    for package, allowed in BELOW.items():
        for path in (ROOT / package).rglob("*.py"):
            tops = {name.split(".")[0] for name in imported(path)}
            assert not tops & PEERS, path
            assert not tops & ({*BELOW, "train", "eval", "tests"} - allowed - {package}), path


def test_floors_of_ecliptica():
    floor = {name: n for n, names in enumerate(FLOORS) for name in names}
    for path in (ROOT / "ecliptica").rglob("*.py"):
        own = path.relative_to(ROOT / "ecliptica").parts[0].removesuffix(".py")
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "ecliptica" and len(parts) > 1 and parts[1] in floor and own in floor:
                assert floor[parts[1]] <= floor[own], f"{path} imports {name}"


def test_kernels_is_ours_and_no_peer_is_loaded_at_run_time():
    assert Path(kernels.__file__).parent == ROOT / "kernels"
    code = (
        "import sys, train, eval, ecliptica.evaluation.report, ecliptica.isd.__main__, model.import_gguf; from ecliptica.evaluation import suites; "
        "[suites.get(n) for n in suites.NAMES]; print(sorted({'transformers', 'peft', 'trl', 'matplotlib', 'gguf'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
