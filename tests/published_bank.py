"""A small bank in the authors' formats: parquet by pyarrow, and taxonomy.yaml."""

AXES = {  # axis: (kind, its types)
    "stance": ("policy", ("cautious", "bold")),
    "register": ("surface", ("formal", "playful", "plain")),
}
PROMPTS = ("rain", "bread", "chess", "maps")


def texts_of(name):
    return [f"Be {name} now.", f"Answer in a {name} way.", f"Let it sound {name}."]


def rows():
    """A row a prompt and type; the three texts of a type take turns over the prompts."""
    made = []
    for number, what in enumerate(PROMPTS):
        for axis, (kind, names) in AXES.items():
            for name in names:
                made.append(
                    {
                        "prompt_id": number,
                        "prompt": f"Tell me of {what}.",
                        "instruction_type": name,
                        "instruction": texts_of(name)[number % 3],
                        "expected_characteristics": [f"{name}_tone", "kept", "clear"],
                        "source": "news" if number % 2 else "intent",
                        "axis": axis,
                        "axis_kind": kind,
                        "origin": "new",
                    }
                )
    return made


def write_parquet(path, records):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(records), path)
    return path


def taxonomy():
    axes = {}
    for axis, (kind, names) in AXES.items():
        types = {
            name: {
                "description": f"{name}, of {axis}",
                "variants": texts_of(name),
                "expected_characteristics": [f"{name}_tone", "kept", "clear"],
            }
            for name in names
        }
        axes[axis] = {"kind": kind, "new_types": types}
    return {"axes": axes, "original_types": {"stance": ["neutral"]}}


def write_taxonomy(path, value):
    import yaml

    path.write_text(yaml.safe_dump(value, sort_keys=False))
    return path
