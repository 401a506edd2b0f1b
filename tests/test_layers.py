"""Imports run one way, and the peers stay out of the run time."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import kernels

ROOT = Path(__file__).parent.parent
PEERS = {"transformers", "peft", "trl"}
EXTRAS = {"matplotlib", "gguf", "tensorboard", "pyarrow", "yaml", "submitit"}
# Who may import whom, beside itself.
BELOW = {"kernels": set(), "model": {"kernels"}, "ecliptica": {"kernels", "model"}}
# The floors of ecliptica from the ground up. A room imports from lower floors and from itself;
# rooms of one floor do not know each other.
FLOORS = [
    {"schema", "files", "fields", "arithmetic", "markdown"},
    {"config", "record", "policy"},
    {"flags", "registry"},
    {"isd", "objectives"},
    {"data"},
    {"rewards"},
    {"online"},
    {"recipe", "running"},
    {"planning"},
    {"training", "evaluation"},
    {"keys"},
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def source_files(package):
    return sorted((ROOT / package).rglob("*.py"))


def dotted(path):
    """The module that a file is."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(path): path for package in BELOW for path in source_files(package)}


def imported(path):
    """The names that a file imports, dotted, wherever in the file the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules_imported(path):
    """The modules of ours that a file imports: `from a.b import c` is a.b.c if that is a module."""
    for name in imported(path):
        if name in MODULES:
            yield name
        elif name.rpartition(".")[0] in MODULES:
            yield name.rpartition(".")[0]


def room_of(module):
    """The room of ecliptica that a module stands in; None outside."""
    parts = module.split(".")
    return parts[1] if parts[0] == "ecliptica" and len(parts) > 1 else None


def test_packages_import_downwards_only():
    for package, allowed in BELOW.items():
        for path in source_files(package):
            tops = {name.split(".")[0] for name in imported(path)}
            assert not tops & PEERS, f"{path} imports a peer: {tops & PEERS}"
            upwards = tops & ({*BELOW, "train", "eval", "tests"} - allowed - {package})
            assert not upwards, f"{path} imports {upwards}"


def test_every_room_of_ecliptica_has_a_floor():
    rooms = {room_of(module) for module in MODULES} - {None, "recipes"}
    assert rooms <= FLOOR_OF.keys(), f"no floor: {rooms - FLOOR_OF.keys()}"


def test_no_room_imports_upwards_or_sideways():
    wrong = []
    for module, path in MODULES.items():
        own = room_of(module)
        for other in modules_imported(path):
            room = room_of(other)
            if own is None or room is None or room == own:
                continue
            if FLOOR_OF[room] >= FLOOR_OF[own]:
                wrong.append(f"{module} imports {other}")
    assert not wrong, "\n".join(wrong)


def test_no_circle_of_imports():
    graph = {module: {*modules_imported(path)} - {module} for module, path in MODULES.items()}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise AssertionError(f"a circle: {' <- '.join(error.args[1])}") from error


def test_kernels_is_ours_and_no_peer_or_extra_is_loaded_at_run_time():
    assert Path(kernels.__file__).parent == ROOT / "kernels"
    names = sorted(name for name in MODULES if not name.endswith("__main__"))
    code = (
        "import sys, train, eval\n"
        "from importlib import import_module\n"
        f"[import_module(name) for name in {names}]\n"
        f"print(sorted({PEERS | EXTRAS} & {{*sys.modules}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
