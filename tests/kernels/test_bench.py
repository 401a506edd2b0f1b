"""The commands' lines of arguments, and the rule by which a kernel is kept. Nothing is timed."""

import pytest

from kernels import rms_norm as rms_norm_module
from kernels import rope as rope_module
from kernels import swiglu as swiglu_module
from kernels.tools import bench, bench_layers, card, compile_ahead, measure
from tests.kernels.layer_cases import close


@pytest.mark.parametrize(
    "main, arguments, message",
    [
        (bench.main, ["--case", "nope"], "invalid choice: 'nope'"),
        (bench.main, ["--rows", "0"], "--repeats and --rows take numbers of at least 1"),
        (bench.main, ["--dtype", "float64"], "invalid choice: 'float64'"),
        (
            bench.main,
            ["--case", "rms_norm", "smollm2"],
            "rms_norm and smollm2 have tables of their own",
        ),
        (bench.main, ["--case", "swiglu", "--peers"], "swiglu is compared with torch.compile"),
        (
            bench.main,
            ["--json", "/no/such/file.json"],
            "--json /no/such/file.json: expected a file in a directory that exists",
        ),
        (bench.main, ["--json", "/"], "--json /: expected a file in a directory that exists"),
        (
            bench.main,
            ["--plot", "picture.zzz"],
            "--plot takes a name that ends in .png, .svg, .pdf",
        ),
        (compile_ahead.main, ["--arch", "70"], "invalid choice: 70"),
        (card.main, ["--rows", "0"], "--rows takes a number of at least 1"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(main, arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert not out
    assert err.count("\n") == 1
    assert err.startswith("error: python -m kernels.tools.")
    assert message in err


def test_the_layers_table_and_the_rule(monkeypatch, capsys):
    """On a CPU: eager and compiled torch; ours is for a GPU, and the verdict says so."""
    monkeypatch.setattr(rms_norm_module, "SIZES", {"cpu": [(8, 16)]})
    monkeypatch.setattr(bench_layers.torch, "compile", lambda function, **_: function)
    options = "--device cpu --case rms_norm --repeats 1 --dtype float32 --head frozen"
    bench.main(options.split())
    *_, header, eager, compiled, verdict = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["case", "R", "width"]
    assert "eager torch" in eager
    assert "1.00x" in compiled
    rule = "rms_norm: kept only if it beats torch.compile's in every line"
    assert verdict == f"{rule}; not decided: the kernel was not measured, it needs --device cuda"


@pytest.mark.parametrize("head", ["frozen", "trained", "logp"])
def test_every_system_computes_the_same_gradient(head, monkeypatch):
    """The table compares equals: torch's own formula and ours, for each kind of head."""
    monkeypatch.setitem(measure.CASES, "tiny", (16, 300))
    x = measure.Inputs(measure.Case("tiny", 70, "float32", head), "cpu")
    gradients = {}
    for name, system in measure.systems("cpu").items():
        x.clear()
        system.step(x)
        gradients[name] = {"hidden.grad": x.hidden.grad}
        if head == "trained":
            gradients[name]["weight.grad"] = x.weight.grad
    close(gradients["torch"], gradients["dense torch"], limit=1e-4)


def test_the_card_shows_its_ceilings_and_the_kernels_of_a_step(monkeypatch, capsys):
    monkeypatch.setitem(measure.CASES, "llama3-8b", (16, 300))
    monkeypatch.setitem(card.SIDE, "cpu", 64)
    assert card.main(["--device", "cpu", "--rows", "8"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("copy ")
    assert "product of 64 x 64 x 64, bfloat16" in out
    assert out.count("aten::mm") >= 2


def test_the_kernel_in_the_table_is_ours():
    modules = {"rms_norm": rms_norm_module, "swiglu": swiglu_module, "rope": rope_module}
    for name, module in modules.items():
        assert "fused" not in bench_layers.systems(name, "cpu")
        assert bench_layers.systems(name, "cuda")["fused"] is getattr(module, name)


@pytest.mark.parametrize(
    "ratios, decision",
    [
        ([0.8, 0.99], "0.80x to 0.99x of its time over 2 lines: keep it"),
        ([0.5, 1.0], "leave it out"),
    ],
)
def test_a_kernel_is_kept_only_if_it_wins_everywhere(ratios, decision):
    rows = [{"case": "swiglu", "system": "fused", "over_compile": ratio} for ratio in ratios]
    rows += [
        {"case": "swiglu", "system": "eager torch", "over_compile": 3.0},
        {"case": "rms_norm", "system": "fused", "over_compile": 2.0},
    ]
    assert decision in bench_layers.verdict("swiglu", rows)
