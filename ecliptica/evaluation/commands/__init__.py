"""One file, one command of eval.py that is no suite: it has a docstring, whose first line is its
help; Options, a frozen dataclass whose fields are its flags; and run(options)."""

from types import ModuleType

from ecliptica.registry import Folder

FOLDER = Folder(__name__, __path__, "command")


def names() -> tuple[str, ...]:
    return FOLDER.names()


def get(name: str) -> ModuleType:
    return FOLDER.get(name)


def about(name: str) -> str:
    """The docstring of a command's file."""
    return FOLDER.about(name)
