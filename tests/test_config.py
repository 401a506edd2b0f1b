"""Configuration: what a recipe, overrides and flags become, and that nothing wrong gets through."""

import argparse
import random
import tomllib
from dataclasses import dataclass, fields

import pytest

from ecliptica import config, flags
from ecliptica.config import RECIPES, from_table, load
from ecliptica.data.formats import configs as format_configs
from ecliptica.objectives import configs as objective_configs
from ecliptica.recipe import Config
from model.errors import InputError

NEEDED = {"model": {"path": "m"}, "data": {"train": "d.jsonl"}}


@dataclass(frozen=True)
class Options:
    """Every kind of field that a command line or a recipe can fill."""

    out: str = config.option(..., "where to write")
    limit: int | None = config.positive(None, "at most so many")
    lr: float = config.positive(0.5, "step size")
    drop: float = config.share_below_one(0.0, "dropout")
    kind: str = config.choice("a", ("a", "b"), "one of two")
    quick: bool = config.option(False, "a quick look")
    words: tuple[str, ...] = config.option(("x", "y"), "some words")
    also: tuple[str, ...] = config.option((), "may be repeated", repeat=True)
    seed: int = config.seed(0, "of the draws")


def table_with(section, **keys):
    """The least recipe that is valid, with some keys of one section set."""
    return NEEDED | {section: NEEDED.get(section, {}) | keys}


def parsed(*words):
    parser = argparse.ArgumentParser(exit_on_error=False)
    flags.add_flags(parser, Options)
    return flags.from_flags(Options, parser.parse_args(["--out", "o", *words]))


def test_a_recipe_and_its_overrides(tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text('[model]\npath = "m"\n[data]\ntrain = "d"\n[training]\nlr = 1\n')
    settings = load(Config, recipe, ["training.seed=7", "lora.targets=q_proj, o_proj"])
    assert settings.training.lr == 1.0
    assert settings.training.seed == 7
    assert settings.lora.targets == ("q_proj", "o_proj")
    assert settings.run.dir == "runs/mine"


@pytest.mark.parametrize(
    "section, keys, message",
    [
        ("objective", {"preference_weight": 0.5}, "read by unified only, and objective.name is"),
        (
            "objective",
            {"name": "sft", "beta": 0.1},
            "objective.beta: read by .*objective.name is sft",
        ),
        ("data", {"isd_rounds": 2}, "data.isd_rounds: read by isd only, and data.format is"),
        ("objective", {"betta": 0.1}, r"unknown key objective.betta \(did you mean beta\?\)"),
        ("objective", {"name": "cite"}, r"objective.name: expected one of .*did you mean cita"),
        ("objective", {"beta": "much"}, "objective.beta must be of type float, got 'much'"),
        ("objective", {"beta": float("nan")}, "objective.beta must be a finite number, got nan"),
        ("training", {"lr": float("inf")}, "training.lr must be a finite number, got inf"),
        ("training", {"lr": 0}, "training.lr: expected > 0, got 0"),
        ("training", {"seed": 2**63}, "training.seed: expected a seed from 0 to"),
        ("training", {"warmup": 1.5}, "training.warmup: expected a share from 0 to 1, got 1.5"),
        ("training", {"epochs": True}, "training.epochs must be of type int, got True"),
        ("lora", {"dropout": 1.0}, "lora.dropout: expected a share from 0 to below 1, got 1.0"),
        ("lora", {"targets": ["q_proj", 3]}, "lora.targets must be a list of strings"),
        ("model", {"dtype": "float16"}, "model.dtype: expected one of float32, bfloat16"),
        ("model", {"path": ""}, "model.path: not set"),
    ],
)
def test_what_a_recipe_may_not_say(section, keys, message):
    with pytest.raises(InputError, match=message):
        from_table(Config, table_with(section, **keys), "r.toml")


def test_another_objective_on_the_command_line_takes_only_the_keys_that_it_reads():
    """The demo's recipe is cita's; its KL weights mean nothing to dpo and its beta does."""
    recipe = tomllib.loads((RECIPES / "demo.toml").read_text())["objective"]
    settings = load(Config, "demo", ["objective.name=dpo"])
    assert settings.objective.beta == recipe["beta"]
    assert not hasattr(settings.objective, "kl_weight_end")
    with pytest.raises(InputError, match="objective.kl_weight_end: read by"):
        load(Config, "demo", ["objective.name=dpo", "objective.kl_weight_end=0.003"])


def every_section():
    """(name, dataclass) of every section of a recipe, whatever objective and format it names."""
    plain = [(f.name, f.type) for f in fields(Config) if not f.metadata["variants"]]
    objectives = [(f"objective {name}", kind) for name, kind in objective_configs().items()]
    formats = [(f"data {name}", kind) for name, kind in format_configs().items()]
    return plain + objectives + formats


@pytest.mark.parametrize(
    "kind", [kind for _, kind in every_section()], ids=lambda kind: kind.__name__
)
def test_every_field_says_what_it_is_and_its_default_obeys_its_rule(kind):
    for field in fields(kind):
        if field.name in ("name", "format"):
            continue
        assert field.metadata.get("help"), f"{kind.__name__}.{field.name} has no help"
        config.check_field(field, field.default, field.name)


def test_settings_read_back_as_themselves(tmp_path):
    """Every control character, quote and backslash, and a text beyond the basic plane."""
    odd = tuple("".join(map(chr, range(at, at + 32))) for at in range(0, 160, 32))
    prompts = ["first\r\nsecond", "ring\u0007", 'a "quoted" \\ one', "\U0001f600\u2028\x7f", *odd]
    settings = from_table(Config, table_with("samples", prompts=prompts), "r.toml", "r")
    (tmp_path / "c.toml").write_bytes(config.as_toml(settings).encode())
    assert load(Config, tmp_path / "c.toml") == settings
    assert settings.samples.prompts == tuple(prompt.strip() for prompt in prompts)


def test_random_bytes_in_a_recipe_are_a_config_or_one_line(tmp_path):
    """1,500 recipes with a few bytes changed, taken out or doubled."""
    draw = random.Random(0)
    good = (RECIPES / "demo.toml").read_bytes()
    path = tmp_path / "r.toml"
    outcomes = {"a config": 0, "one line": 0}
    for _ in range(1500):
        data = bytearray(good)
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(data))
            change = draw.choice(("replace", "remove", "double"))
            if change == "replace":
                data[at] = draw.randrange(256)
            elif change == "remove":
                del data[at : at + draw.randint(1, 30)]
            else:
                data[at:at] = data[at : at + draw.randint(1, 30)]
        path.write_bytes(data)
        try:
            load(Config, path)
            outcomes["a config"] += 1
        except InputError as error:
            assert str(error)
            outcomes["one line"] += 1
    assert min(outcomes.values()) > 100, outcomes


def test_flags_are_made_from_the_fields():
    options = parsed("--limit", "3", "--lr", "1", "--quick", "--also", "a=b", "--also", "c,d")
    assert options == Options("o", 3, 1.0, quick=True, also=("a=b", "c,d"))
    assert parsed("--words", "p,q").words == ("p", "q")
    assert parsed() == Options("o")


@pytest.mark.parametrize(
    "words, message",
    [
        (("--limit", "0"), "--limit: expected > 0, got 0"),
        (("--limit", "many"), "--limit must be of type int, got 'many'"),
        (("--lr", "nan"), "--lr must be a finite number"),
        (("--kind", "c"), "--kind: expected one of a, b, got 'c'"),
        (("--drop", "1"), "--drop: expected a share"),
        (("--seed", "-1"), "--seed: expected a seed"),
        (("--words", "half \ud83d"), "--words: text that is no Unicode"),
    ],
)
def test_what_a_flag_may_not_say(words, message):
    with pytest.raises(InputError, match=message):
        parsed(*words)
