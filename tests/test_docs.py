"""What the documents name exists: files, tests, recipes, and every config key they mention."""

import re
from pathlib import Path

from ecliptica import config, keys
from ecliptica.recipe import Config

ROOT = Path(__file__).parent.parent
DOCS = {
    path: path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
}


def test_files_named_in_the_documents_exist():
    for doc, text in DOCS.items():
        for name in re.findall(
            r"`((?:ecliptica|kernels|model|tests|docs)/[\w/.]+\.(?:py|md|toml|jsonl))", text
        ):
            assert "NAME" in name or (ROOT / name).exists(), f"{doc.name}: {name}"


def test_every_erratum_names_a_test_that_exists():
    text = DOCS[ROOT / "docs" / "errata.md"]
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) >= 5
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(), test


def keys_of(section):
    """Every key that the section has, whatever the objective and the format."""
    field = Config.__dataclass_fields__[section]
    variants = field.metadata["variants"]
    kinds = variants.types().values() if variants else [field.type]
    return {name for kind in kinds for name in kind.__dataclass_fields__}


def test_config_keys_named_in_the_documents_exist():
    for doc, text in DOCS.items():
        for section, key in re.findall(
            r"`?\b(model|data|objective|lora|training|samples|run)\.(\w+) ?=", text
        ):
            assert key in keys_of(section), f"{doc.name}: {section}.{key}"


def test_shipped_recipes_are_valid():
    for path in config.RECIPES.glob("*.toml"):
        loaded = config.load(Config, path.stem)
        assert loaded.run.dir == f"runs/{path.stem}"
        assert config.load(Config, path.stem, ["run.dir=x"]).run.dir == "x"


def test_the_resolved_config_reads_back_as_itself(tmp_path):
    loaded = config.load(
        Config,
        "demo",
        [
            "objective.reference_free=true",
            'samples.prompts=["a \\"quoted\\" one", "b"]',
            "lora.targets=q_proj,v_proj",
        ],
    )
    (tmp_path / "c.toml").write_text(config.as_toml(loaded))
    assert (
        config.load(Config, tmp_path / "c.toml") == loaded
        and loaded.lora.targets == ("q_proj", "v_proj")
        and loaded.samples.prompts[0] == 'a "quoted" one'
    )


def test_the_page_of_keys_is_what_the_fields_say():
    """After a change of a field: python -m ecliptica.keys > docs/keys.md"""
    page = (ROOT / "docs" / "keys.md").read_text(encoding="utf-8")
    assert page.splitlines() == keys.page().splitlines()
