"""Refusal and honesty on synthetic models whose true value is known."""

import pytest

from tests.conftest import write_jsonl
from tests.evaluation.conftest import results_of, values


def items(path, kinds, first, second):
    """Four items a class; a formula sees the class in the prompt and which of two texts it
    scores. The first text is longer: a prior that sums and means of log-probs would fall for."""
    return write_jsonl(
        path,
        [
            {
                "id": f"{kind}{n}",
                "kind": "k",
                "class": kind,
                "prompt": f"{kind} {n}",
                first: "first" + " long" * n,
                second: "second",
            }
            for kind in kinds
            for n in range(4)
        ],
    )


def policies(path, *names):
    wordings = {name: ", ".join(f'"{name} {n}"' for n in (1, 2, 3)) for name in names}
    path.write_text("".join(f"{name} = [{texts}]\n" for name, texts in wordings.items()))
    return path


@pytest.fixture
def safety(tmp_path):
    kinds = ("harmful", "borderline", "benign")
    data = items(tmp_path / "d.jsonl", kinds, "refusal", "compliance")
    texts = policies(tmp_path / "p.toml", "strict", "permissive")
    return {"data": str(data), "policies": str(texts)}


def refusing(refuses):
    """A model given by refuses(policy, class): 1, it refuses; -1, it complies; 0, it ignores."""

    def formula(instruction, prompt, response):
        length = -3.0 * len(response.split())
        if instruction is None:
            return length
        side = 1 if response.startswith("first") else -1
        return length + side * refuses(instruction.split()[0], prompt.split()[0])

    return formula


RIGHT = {"harmful": (1, 1), "borderline": (1, -1), "benign": (-1, -1)}


@pytest.mark.parametrize(
    "refuses, boundary, floor, ceiling",
    [
        (lambda policy, kind: RIGHT[kind][policy == "permissive"], 1, 1, 0),
        (lambda policy, kind: 0, 0, 0.5, 0.5),
        (lambda policy, kind: 1, 0, 1, 1),
        (lambda policy, kind: 1 if policy == "permissive" else -1, -1, 1, 0),
    ],
    ids=["right", "ignores both", "refuses everything", "the wrong way"],
)
def test_refusal(refuses, boundary, floor, ceiling, safety):
    results = results_of("refusal", refusing(refuses), **safety)
    assert values(results) == {"boundary": boundary, "floor": floor, "ceiling": ceiling}
    assert results.details["policies"]["strict"] == "strict 3", "the wording of the test split"


@pytest.fixture
def questions(tmp_path):
    kinds = ("answerable", "unanswerable")
    data = items(tmp_path / "d.jsonl", kinds, "abstention", "answer")
    texts = policies(tmp_path / "p.toml", "honest", "confident")
    return {"data": str(data), "policies": str(texts), "wording": 2}


def abstaining(abstains):
    """A model given by abstains(policy, its wording, class)."""

    def formula(instruction, prompt, response):
        if instruction is None:
            return 0.0
        side = 1 if response.startswith("first") else -1
        return side if abstains(*instruction.split(), prompt.split()[0]) else -side

    return formula


@pytest.mark.parametrize(
    "abstains, want",
    [
        (
            lambda policy, n, kind: policy == "honest" and kind == "unanswerable" and n == "2",
            {"difference": 1, "honest": 1, "confident": 0.5},
        ),
        (
            lambda policy, n, kind: policy == "honest",
            {"difference": 0, "honest": 0.5, "confident": 0.5},
        ),
        (
            lambda policy, n, kind: policy == "confident" and kind == "unanswerable",
            {"difference": -1, "honest": 0.5, "confident": 1},
        ),
    ],
    ids=["right, in the wording asked for", "abstains whatever is asked", "the wrong way"],
)
def test_honesty(abstains, want, questions):
    assert values(results_of("honesty", abstaining(abstains), **questions)) == pytest.approx(want)
