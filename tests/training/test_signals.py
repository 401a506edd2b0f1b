"""A signal: the run is saved, says so, and the command exits with 128 + its number."""

import os
import signal

import pytest

import train
from ecliptica.running.ranks import Ranks
from ecliptica.running.signals import Signals
from ecliptica.training import loop, reference_cache
from model import cli
from model.errors import Stopped


def command(config, tmp_path, *overrides):
    """The exit code of train.py with the config that a run of it wrote down."""
    return cli.run(train.main, [str(tmp_path / "small.toml"), *overrides])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_exit_code_is_128_and_the_signal(number, recipe, tmp_path, monkeypatch, capsys):
    real = loop.optimizer_step

    def signalled(*args):
        os.kill(os.getpid(), number)
        return real(*args)

    monkeypatch.setattr(loop, "optimizer_step", signalled)
    assert command(recipe, tmp_path) == 128 + number
    name = signal.Signals(number).name
    want = f"stopped by {name} after step 1 of 5, saved; the same command goes on"
    assert want in capsys.readouterr().out
    assert (tmp_path / "run" / "checkpoints" / "step-000001").is_dir()
    assert not (tmp_path / "run" / "final").exists()

    monkeypatch.setattr(loop, "optimizer_step", real)
    assert command(recipe, tmp_path) == 0
    assert "resumed after step 1 of 5" in capsys.readouterr().err


def test_before_the_first_step_it_ends_in_order_too(recipe, tmp_path, monkeypatch, capsys):
    real = reference_cache._write

    def signalled(*args):
        real(*args)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(reference_cache, "_write", signalled)
    with pytest.raises(Stopped) as stop:
        loop.train(recipe("training.reference=cache"))
    assert stop.value.number == signal.SIGTERM
    assert "stopped by SIGTERM before its next step; the same command goes on" in str(stop.value)
    monkeypatch.setattr(reference_cache, "_write", real)
    loop.train(recipe("training.reference=cache"))
    assert "made again" not in capsys.readouterr().err
    assert (tmp_path / "run" / "final").is_dir()


def test_a_second_ctrl_c_interrupts_a_single_process_at_once():
    with Signals(Ranks()), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_every_rank_stops_by_the_signal_that_one_of_them_got(monkeypatch):
    """Two ranks, of which the other got SIGTERM: this one exits with the same code, and is not the
    one to say it."""
    monkeypatch.setattr(Ranks, "reduce", lambda self, values, how: [float(signal.SIGTERM)])
    with Signals(Ranks(1, 2)) as signals, pytest.raises(Stopped) as stop:
        signals.check("runs/x")
    assert stop.value.number == signal.SIGTERM and stop.value.elsewhere

    def stopped(argv):
        raise stop.value

    assert cli.run(stopped) == 143
