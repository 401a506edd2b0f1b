"""One file, one thing: the modules of a folder by name. A file that is dropped in is there."""

import ast
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType

from ecliptica.config import hint
from model.errors import InputError


class Folder:
    """The modules of a package that are choices of one kind, such as the objectives.

    what: how the choice is called in errors (`objective.name`). shared: modules that are no choice.
    The folder is read at every call: a file, or a directory added to `path`, counts at once.
    """

    def __init__(self, package: str, path: Sequence[str], what: str, shared: Sequence[str] = ()):
        self.package = package
        self.path = path
        self.what = what
        self.shared = shared

    def names(self) -> tuple[str, ...]:
        """The names of the choices, sorted; an underscore in a file's name is a dash in its own."""
        modules = {module.name for module in iter_modules(self.path)} - set(self.shared)
        return tuple(sorted(name.replace("_", "-") for name in modules))

    def get(self, name: str) -> ModuleType:
        """The module of a name. Raises InputError for one that there is not."""
        names = self.names()
        if name not in names:
            raise InputError(
                f"{self.what}: expected one of {', '.join(names)}, got {name!r}{hint(name, names)}"
            )
        return import_module(f"{self.package}.{name.replace('-', '_')}")

    def about(self, name: str) -> str:
        """The docstring of a module, read from its file: a list of names imports nothing."""
        for module in iter_modules(self.path):
            if module.name.replace("_", "-") == name:
                file = module.module_finder.find_spec(module.name).origin
                return ast.get_docstring(ast.parse(Path(file).read_bytes())) or ""
        raise InputError(f"{self.what}: no {name!r} among {', '.join(self.names())}")

    def all(self) -> dict[str, ModuleType]:
        """{name: module}."""
        return {name: self.get(name) for name in self.names()}
