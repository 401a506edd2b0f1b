"""Every key of a recipe and every option of a suite as Markdown: `python -m ecliptica.keys`.

The tables are made from the fields of the dataclasses, so they cannot drift from the code:

    python -m ecliptica.keys > docs/keys.md
"""

import sys
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from types import UnionType
from typing import Any, get_origin

from ecliptica.config import to_toml
from ecliptica.evaluation import suites
from ecliptica.flags import flag
from ecliptica.markdown import table
from model import cli

HEAD = """# Keys of a recipe, options of a suite

Made by `python -m ecliptica.keys`; what stands here stands at the fields of the dataclasses.
A recipe is TOML; `section.key=value` on the command line goes before it. A key that nobody reads
is refused, and so is a value of another type.
"""


def page() -> str:
    """The whole of docs/keys.md."""
    return "\n".join([HEAD, *recipe_tables(), *suite_tables()])


def recipe_tables() -> Iterator[str]:
    """A table for each section; for `objective`, `reward` and `data`, one for each variant with
    keys."""
    # Only now what takes seconds to import: --help does not wait for torch.
    from ecliptica import rewards
    from ecliptica.data import formats
    from ecliptica.data.settings import DataConfig
    from ecliptica.objectives import configs
    from ecliptica.recipe import Config

    variants = {"objective": configs, "reward": rewards.configs}
    for section in fields(Config):
        if section.name in variants:
            for name, kind in variants[section.name]().items():
                yield section_of(f'`[{section.name}]` with name = "{name}"', kind)
        elif section.name == "data":
            yield section_of("`[data]`", DataConfig)
            shared = {field.name for field in fields(DataConfig)}
            for name, kind in formats.configs().items():
                if kind is not DataConfig:
                    yield section_of(f'`[data]` with format = "{name}"', kind, leave_out=shared)
        else:
            yield section_of(f"`[{section.name}]`", section.type)


def suite_tables() -> Iterator[str]:
    """A table for each suite of eval.py."""
    for name in suites.names():
        yield section_of(f"`eval.py {name}`", suites.get(name).Options, name_of=flag)


def section_of(title: str, kind: type, leave_out=frozenset(("name",)), name_of=str) -> str:
    """A heading and a table of a dataclass: key, type, default, what it is and its rule."""
    rows = [
        [f"`{name_of(field.name)}`", type_of(field), default_of(field), about(field)]
        for field in fields(kind)
        if field.name not in leave_out
    ]
    return f"## {title}\n\n{table(('key', 'type', 'default', ''), rows)}\n"


def type_of(field: Field) -> str:
    """The type as a person says it."""
    if get_origin(field.type) is tuple:
        return "list of strings"
    if isinstance(field.type, UnionType):
        return str(field.type).replace(" | None", "").removeprefix("<class '").removesuffix("'>")
    return {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}.get(
        field.type.__name__, field.type.__name__
    )


def default_of(field: Field) -> str:
    """The default as TOML; a dash where there is none."""
    default: Any = field.default
    if "default_text" in field.metadata:
        return field.metadata["default_text"]
    if default is MISSING:
        return "required"
    return "-" if default in (None, "", ()) else f"`{to_toml(default)}`"


def about(field: Field) -> str:
    """The line of help, with the rule or the choices."""
    text = field.metadata.get("help") or ""
    if choices := field.metadata.get("choices"):
        return f"{text} ({', '.join(choices)})"
    if rule := field.metadata.get("rule"):
        return f"{text} ({rule.wanted})"
    return text


def main(argv: list[str] | None = None) -> None:
    cli.Parser(prog="python -m ecliptica.keys", description=__doc__).parse_args(argv)
    print(page(), end="")


if __name__ == "__main__":
    sys.exit(cli.run(main))
