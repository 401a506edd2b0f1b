"""What is written down: every number under its own name, and no number that is none."""

from ecliptica.training.log import COLUMNS, Log
from tests.training.runs import rows


def test_every_name_is_written_and_columns_stay(tmp_path):
    with Log(tmp_path, 4, {"ablation": True}) as log:
        log.step(0, {"loss": 1.5, "rank": 0.25, "logps/chosen": -3.0})
        log.step(1, {"loss": 1.25, "rank": 0.5, "logps/chosen": -2.0})
    first, second = rows(tmp_path / "metrics.jsonl")
    assert list(first) == ["step", "ablation", *COLUMNS, "rank"]
    assert first["rank"] == 0.25 and first["kl"] is None and first["logps/chosen_change"] == 0
    assert second["logps/chosen_change"] == 1.0


def test_a_number_that_is_none_is_null_and_said(tmp_path, capsys):
    with Log(tmp_path, 1, {}) as log:
        log.step(0, {"loss": 1.0, "rewards/chosen": float("nan"), "kl": float("inf")})
    (row,) = rows(tmp_path / "metrics.jsonl")
    assert row["rewards/chosen"] is None and row["kl"] is None and row["loss"] == 1.0
    words = "step 0: no finite number: kl, rewards/chosen; null in metrics.jsonl"
    assert words in capsys.readouterr().err


def test_other_ranks_write_and_say_nothing(tmp_path, capsys):
    with Log(tmp_path, 1, {}, main=False) as log:
        log.step(0, {"loss": 1.0})
        log.say("a line")
        log.result("a line")
    captured = capsys.readouterr()
    assert not list(tmp_path.iterdir()) and captured.out == captured.err == ""
