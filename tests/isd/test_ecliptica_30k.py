"""ECLIPTICA-30k as published: what its two files say, and one line for what is broken in them."""

import sys

import pytest

from ecliptica.isd.bank import load_axes, load_bank, load_instructions
from ecliptica.isd.ecliptica_30k import read_types
from model.errors import InputError
from tests.published_bank import AXES, rows, taxonomy, texts_of, write_parquet, write_taxonomy

NAMES = [name for _, names in AXES.values() for name in names]


def test_both_files_say_the_same(tmp_path):
    path = write_parquet(tmp_path / "bank.parquet", rows())
    bank = load_bank(path)
    assert [(entry.id, entry.prompt, entry.domain, entry.split) for entry in bank] == [
        ("0", "Tell me of rain.", "intent", "test"),
        ("1", "Tell me of bread.", "news", "test"),
        ("2", "Tell me of chess.", "intent", "test"),
        ("3", "Tell me of maps.", "news", "test"),
    ]
    assert not any(entry.responses for entry in bank)
    yaml = write_taxonomy(tmp_path / "taxonomy.yaml", taxonomy())
    want = {name: tuple(texts_of(name)) for name in NAMES}
    assert load_instructions(path) == load_instructions(yaml) == want
    assert list(load_axes(path).items()) == list(load_axes(yaml).items())
    assert read_types(path) == read_types(yaml)
    assert read_types(yaml)["plain"].characteristics == ("plain_tone", "kept", "clear")


def test_the_last_columns_may_be_absent_and_tags_one_text(tmp_path):
    records = [
        {
            key: ", ".join(value) if key == "expected_characteristics" else value
            for key, value in row.items()
            if key not in ("axis", "axis_kind", "origin")
        }
        for row in rows()
    ]
    types = read_types(write_parquet(tmp_path / "bank.parquet", records))
    assert {own.axis for own in types.values()} == {None}
    assert types["bold"].characteristics == ("bold_tone", "kept", "clear")


def changed(number, **changes):
    records = rows()
    records[number] |= changes
    return records


BROKEN = {
    "a column": ([{k: v for k, v in row.items() if k != "source"} for row in rows()], "no column"),
    "no rows": ([], "no column 'prompt_id'"),
    "an empty text": (changed(3, instruction=" "), "row 3: instruction: expected a text, got ' '"),
    "null": (changed(2, prompt=None), "row 2: prompt: expected a text, got None"),
    "two prompts": (changed(1, prompt="Other?"), "row 1: prompt_id '0' has another prompt"),
    "twice": ([*rows(), rows()[0]], "row 20: '0' under 'cautious' occurs twice"),
    "two axes": (changed(5, axis="register"), "row 5: 'cautious' is on the axis 'register'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_parquet_file_is_one_line(case, tmp_path):
    records, message = BROKEN[case]
    path = write_parquet(tmp_path / "bank.parquet", records)
    with pytest.raises(InputError, match=message) as caught:
        load_bank(path)
        load_instructions(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("cut", [0, 7, 900])
def test_a_cut_parquet_file_is_one_line(cut, tmp_path):
    path = write_parquet(tmp_path / "bank.parquet", rows())
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match="not a whole parquet file") as caught:
        load_bank(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no such file; expected a parquet file"):
        load_bank(tmp_path / "absent.parquet")


def spoilt(*place, value):
    """The taxonomy with one value in it replaced."""
    whole = taxonomy()
    table = whole
    for key in place[:-1]:
        table = table[key]
    table[place[-1]] = value
    return whole


BOLD = ("axes", "stance", "new_types", "bold")
BROKEN_TAXONOMIES = {
    "no axes": ({"types": {}}, "axes: expected a table with an axis, got None"),
    "a list": ([1], "expected a table with axes"),
    "no kind": (spoilt("axes", "stance", "kind", value=None), "axes.stance.kind: expected a text"),
    "no variants": (spoilt(*BOLD, "variants", value=[]), "bold.variants: expected a list of texts"),
    "a number": (spoilt(*BOLD, "variants", value=[1]), "bold.variants: expected a text, got 1"),
    "tags": (spoilt(*BOLD, "expected_characteristics", value=[1]), "expected tags"),
    "a text": (spoilt(*BOLD, value="Be bold."), "bold: expected a table with variants"),
    "two axes": (
        spoilt("axes", "more", value=taxonomy()["axes"]["stance"]),
        "the type 'cautious' is on two axes",
    ),
    "original": (spoilt("original_types", "stance", value="neutral"), "original_types.stance: exp"),
}


@pytest.mark.parametrize("case", BROKEN_TAXONOMIES)
def test_a_broken_taxonomy_is_one_line(case, tmp_path):
    value, message = BROKEN_TAXONOMIES[case]
    path = write_taxonomy(tmp_path / "taxonomy.yaml", value)
    with pytest.raises(InputError, match=message) as caught:
        load_instructions(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_yaml_that_is_none(tmp_path):
    path = tmp_path / "taxonomy.yaml"
    path.write_text("axes: {a: [\n b: c")
    with pytest.raises(InputError, match="not valid YAML") as caught:
        load_instructions(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("module, name", [("pyarrow", "b.parquet"), ("yaml", "t.yaml")])
def test_an_extra_that_is_not_installed_is_named(module, name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"pip install ecliptica-cita\[ecliptica-30k\]"):
        load_instructions(tmp_path / name)
