"""What each format reads, and how each bad line is named."""

import json

import pytest

import train
from ecliptica.data import formats
from ecliptica.data.formats.isd import Config as IsdConfig
from ecliptica.isd import __main__ as isd
from ecliptica.isd.bank import load_bank
from model import cli
from model.errors import InputError
from tests.conftest import write_jsonl

GOOD = {"instruction": "Be kind.", "prompt": "Hi?", "chosen": "Hello.", "rejected": "Go."}
USER, YES, NO = (
    {"role": r, "content": c}
    for r, c in (("user", "Hi?"), ("assistant", "Hello."), ("assistant", "Go."))
)
SYSTEM, LATER = {"role": "system", "content": "Be kind."}, {"role": "user", "content": "And now?"}


def one(record, name):
    return formats.read(record, name)[0]


@pytest.mark.parametrize(
    "name, record, expected",
    [
        (
            "cita",
            GOOD | {"rationale": "manners", "extra": 1},
            ("Be kind.", (), "Hi?", ("Hello.", "Go.")),
        ),
        (
            "cita",
            {"prompt": "Hi?", "responses": ["a", "b", "c"], "scores": [0, 2, 1]},
            (None, (), "Hi?", ("b", "c", "a")),
        ),
        (
            "eba",
            {"prompt": "Hi?", "chosen": "Hello.", "rejected": "Go."},
            (None, (), "Hi?", ("Hello.", "Go.")),
        ),
        (
            "messages",
            {"prompt": [SYSTEM, USER], "chosen": [YES], "rejected": [NO]},
            ("Be kind.", (), "Hi?", ("Hello.", "Go.")),
        ),
        (
            "messages",
            {"prompt": "Hi?", "chosen": [YES], "rejected": [NO]},
            (None, (), "Hi?", ("Hello.", "Go.")),
        ),
        (
            "messages",
            {"chosen": [USER, YES], "rejected": [USER, NO]},
            (None, (), "Hi?", ("Hello.", "Go.")),
        ),
        (
            "messages",
            {"prompt": [USER, YES, LATER], "chosen": "Now.", "rejected": "Never."},
            (None, (("Hi?", "Hello."),), "And now?", ("Now.", "Never.")),
        ),
    ],
)
def test_formats(name, record, expected, tmp_path):
    p = one(write_jsonl(tmp_path / "d.jsonl", [record]), name)
    assert (p.instruction, p.turns, p.prompt, p.responses) == expected
    assert p.scores == tuple(sorted(p.scores, reverse=True)) and p.id.endswith("d.jsonl:1")


@pytest.mark.parametrize(
    "name, line, message",
    [
        ("cita", "{", r"d.jsonl:2: not valid JSON"),
        ("cita", "[1]", r"d.jsonl:2: expected a JSON object, got list"),
        ("cita", GOOD | {"chosen": "Go."}, r"d.jsonl:2: 'chosen' and 'rejected' are equal"),
        ("cita", GOOD | {"rejected": "  "}, r"d.jsonl:2: 'rejected' is empty"),
        ("cita", GOOD | {"prompt": 3}, r"d.jsonl:2: 'prompt' must be a string, got int"),
        ("cita", {"prompt": "Hi?", "chosen": "a"}, r"d.jsonl:2: the field 'rejected' is missing"),
        (
            "cita",
            {"prompt": "p", "responses": ["a", "b"], "scores": [1]},
            "'scores' must be a list of 2 numbers",
        ),
        *(
            ("cita", {"prompt": "p", "responses": ["a", "b"], "scores": scores}, message)
            for scores, message in (
                ([None, 1], "'scores' must be finite numbers, got None"),
                ([True, 0], "'scores' must be finite numbers, got True"),
                (["2", "1"], "'scores' must be finite numbers, got 2"),
                ([1e39, 1], "'scores' must be 32-bit numbers"),
                ([1, 1 + 1e-12], "no preference in them"),
                ([10**18, 10**18 + 1], "no preference in them"),
            )
        ),
        (
            "cita",
            {"prompt": "p", "responses": ["a", "b"], "scores": [1, 1]},
            "no preference in them",
        ),
        (
            "messages",
            {"chosen": [USER], "rejected": [USER]},
            "the last message of 'chosen' must be the assistant's",
        ),
        (
            "messages",
            {"chosen": [USER, YES], "rejected": [LATER, NO]},
            "must share every message but the last",
        ),
        (
            "messages",
            {"chosen": [YES, YES], "rejected": [YES, NO]},
            "before the answer, got assistant",
        ),
        ("messages", {"chosen": [], "rejected": []}, "'chosen' must be a list of"),
        ("messages", {"prompt": "q", "chosen": "", "rejected": "b"}, "'chosen' is empty"),
        ("cita", '{"prompt": "p", "responses": ["a", "b"], "scores": [NaN, 1]}', "NaN is not JSON"),
        ("cita", json.dumps(GOOD | {"note": "\ud83d"}), "d.jsonl:2: text that is no Unicode"),
        ("cita", json.dumps(GOOD | {"tags": ["\ude00"]}), "d.jsonl:2: text that is no Unicode"),
    ],
)
def test_bad_lines_are_named(name, line, message, tmp_path):
    good = json.dumps(GOOD if name == "cita" else {"chosen": [USER, YES], "rejected": [USER, NO]})
    path = tmp_path / "d.jsonl"
    path.write_text(
        good + "\n" + (line if isinstance(line, str) else json.dumps(line)) + "\n" + good + "\n"
    )
    with pytest.raises(InputError, match=message):
        formats.read(path, name)
    skipped = []
    assert len(formats.read(path, name, "skip", skipped)) == 2 and len(skipped) == 1


def test_bad_files_are_named(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    for name, message in (
        ("none.jsonl", "no such file"),
        ("empty.jsonl", "no usable line"),
        ("binary.jsonl", "not UTF-8"),
        (".", "is a directory"),
    ):
        with pytest.raises(InputError, match=message):
            formats.read(tmp_path / name, "cita")
    names = "cita, eba, isd, messages, unpaired"
    with pytest.raises(InputError, match=f"expected one of {names}, got 'csv'"):
        formats.read(tmp_path / "x", "csv")


def test_ids_may_be_integers(tmp_path):
    chat = {"prompt": "Hi?", "chosen": [YES], "rejected": [NO]}
    for name, record in (("cita", GOOD), ("eba", GOOD), ("messages", chat)):
        path = write_jsonl(tmp_path / "d.jsonl", [record | {"id": n} for n in (0, -3, "x", None)])
        ids = [preference.id for preference in formats.read(path, name)]
        assert ids == ["0", "-3", "x", f"{path}:4"], name
        for wrong in (True, 1.5, [1]):
            with pytest.raises(InputError, match="'id' must be a string"):
                formats.read(write_jsonl(path, [record | {"id": wrong}]), name)
    entry = {"id": 7, "prompt": "p", "domain": "d", "split": "train"}
    assert load_bank(write_jsonl(tmp_path / "b.jsonl", [entry]))[0].id == "7"


def test_an_empty_system_text_or_instruction_is_none(tmp_path):
    path = tmp_path / "d.jsonl"
    for empty in ("", " \n", None):
        system = {"role": "system", "content": empty}
        chat = {"prompt": [system, USER], "chosen": [YES], "rejected": [NO]}
        whole = {"chosen": [system, USER, YES], "rejected": [system, USER, NO]}
        for name, record in (
            ("messages", chat),
            ("messages", whole),
            ("cita", GOOD | {"instruction": empty, "rationale": empty}),
        ):
            preference = one(write_jsonl(path, [record]), name)
            assert (preference.instruction, preference.prompt) == (None, "Hi?"), record


def test_a_pair_of_equal_texts_is_refused_before_it_is_written(tmp_path):
    bank = bank_of(tmp_path)
    file = bank / "d0.jsonl"
    file.write_text(file.read_text().replace('"y": "y 0 0"', '"y": "x 0 0"'))
    options = ["--bank", bank, "--instructions", tmp_path / "i.toml", "--out", tmp_path / "p.jsonl"]
    with pytest.raises(InputError, match="d0-0/x/sibling-0: 'chosen' and 'rejected' are equal"):
        isd.main(["build", *map(str, options)])
    assert not (tmp_path / "p.jsonl").exists()


def bank_of(tmp_path, domains=2):
    """A bank directory: per domain 2 train and 2 dev prompts with responses, and one without."""
    (tmp_path / "bank").mkdir()
    for d in range(domains):
        line = {"domain": f"d{d}", "prompt": "p"}
        write_jsonl(
            tmp_path / "bank" / f"d{d}.jsonl",
            [line | {"id": f"d{d}-bare", "split": "train"}]
            + [
                line
                | {
                    "id": f"d{d}-{n}",
                    "prompt": f"Prompt {d} {n}?",
                    "split": ("train", "dev")[n % 2],
                    "responses": {k: f"{k} {d} {n}" for k in ("x", "y")},
                }
                for n in range(4)
            ],
        )
    (tmp_path / "i.toml").write_text('x = ["x 1", "x 2", "x 3"]\ny = ["y 1", "y 2", "y 3"]\n')
    write_jsonl(
        tmp_path / "scores.jsonl",
        [
            {
                "prompt": f"d{d}-{n}",
                "instruction": j,
                "response_to": f"d{d}-{n}",
                "response": k,
                "logp": -1.0,
            }
            for d in range(domains)
            for n in (0, 2)
            for j in "xy"
            for k in "xy"
        ],
    )
    return tmp_path / "bank"


@pytest.mark.parametrize("split", ["train", "dev"])
@pytest.mark.parametrize("scored", [False, True])
def test_isd_reads_what_isd_build_writes(split, scored, tmp_path):
    bank, scores = str(bank_of(tmp_path)), str(tmp_path / "scores.jsonl")
    config = IsdConfig(
        format="isd",
        isd_instructions=str(tmp_path / "i.toml"),
        isd_rounds=2,
        isd_seed=5,
        isd_scores=scores if scored else "",
    )
    read = formats.read(bank, "isd", config=config, split=split)
    extra = ["--scores", scores] if scored and split == "train" else []
    isd.main(
        [
            "build",
            "--bank",
            bank,
            "--instructions",
            f"{tmp_path}/i.toml",
            "--rounds",
            "2",
            "--seed",
            "5",
            "--split",
            split,
            "--out",
            f"{tmp_path}/p.jsonl",
            *extra,
        ]
    )
    assert read == formats.read(tmp_path / "p.jsonl", "cita") and len(read) == 4 * 2 * 2 * (
        3 if extra else 2
    )
    assert {p.instruction for p in read} == ({"x 1", "y 1"} if split == "train" else {"x 2", "y 2"})


def test_isd_reads_the_shipped_bank_where_no_path_is_given():
    read = formats.read("", "isd", config=IsdConfig(format="isd"))
    assert len(read) == 80 * 10 * 2 and len({p.prompt for p in read}) == 80


def test_a_run_from_the_bank(tmp_path, tiny, capsys):
    bank = bank_of(tmp_path)
    (tmp_path / "r.toml").write_text(f'''
[model]
path = "{tiny}"
dtype = "float32"
[data]
train = "{bank}"
eval = "{bank}"
format = "isd"
template = "chatml"
isd_instructions = "{tmp_path}/i.toml"
[training]
max_steps = 2
eval_every = 2
batch_preferences = 4
device = "cpu"
[run]
dir = "{tmp_path}/run"
''')
    assert cli.run(train.main, [str(tmp_path / "r.toml")]) == 0
    assert f"{bank}: 16 " in capsys.readouterr().err and (tmp_path / "run" / "final").is_dir()
    for key, value, message in (
        ("data.isd_rounds", "0", "data.isd_rounds: expected > 0"),
        ("data.format", "cita", "is a directory; expected a file of JSON lines"),
        ("data.train", str(tmp_path / "none"), "no such file"),
        ("data.isd_scores", str(tmp_path / "none"), "no such file"),
    ):
        assert (
            cli.run(
                train.main,
                [str(tmp_path / "r.toml"), f"{key}={value}", f"run.dir={tmp_path}/{key}"],
            )
            == 2
        )
        assert message in capsys.readouterr().err
