"""Labelled responses: the format, what is paired with what for kto's baseline, what is refused."""

import pytest

from ecliptica.data import formats
from ecliptica.data.loader import load_examples, micro_batches, mismatched
from ecliptica.data.packing import pack
from ecliptica.data.settings import DataConfig
from ecliptica.data.templates import get_template
from ecliptica.objectives.contract import Needs
from ecliptica.schema import Encoded
from model.errors import InputError
from tests.conftest import write_jsonl

LABELLED = Needs(reference=True, labelled=True)
LINE = {"instruction": "Be kind.", "prompt": "Hi?", "response": "Hello.", "label": True}


def labelled(count, window=50):
    """Examples of distinct contexts and responses, longer and longer; every other one is good."""
    return [
        Encoded(f"e{n}", (n + 3,) * (n + 1), ((n + 100,) * (n + 2),), (float(n % 2),), window)
        for n in range(count)
    ]


def test_a_line_is_one_response_with_a_label(tmp_path):
    plain = {"prompt": "Hi?", "response": "Go.", "label": False}
    path = write_jsonl(tmp_path / "x.jsonl", [LINE, plain])
    good, bad = formats.read(path, "unpaired")
    assert (good.instruction, good.responses, good.scores) == ("Be kind.", ("Hello.",), (1.0,))
    assert (bad.instruction, bad.responses, bad.scores) == (None, ("Go.",), (0.0,))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"label": 1}, "x.jsonl:1: 'label' must be true or false, got '1'"),
        ({"label": "true"}, "'label' must be true or false, got 'true'"),
        ({"label": None}, "'label' must be true or false"),
        ({"response": " "}, "'response' is empty"),
        ({"prompt": 3}, "'prompt' must be a string"),
    ],
)
def test_a_bad_line_is_named(changes, message, tmp_path):
    path = write_jsonl(tmp_path / "x.jsonl", [LINE | changes])
    with pytest.raises(InputError, match=message):
        formats.read(path, "unpaired")
    with pytest.raises(InputError, match="'label' must be true or false, it is missing"):
        formats.read(write_jsonl(path, [{"prompt": "Hi?", "response": "Go."}]), "unpaired")


def load(path, tokenizer, needs=LABELLED, **options):
    config = DataConfig(train=str(path), **options)
    return load_examples(path, config, tokenizer, get_template("chatml", tokenizer), 1, needs=needs)


def test_a_preference_is_a_good_and_a_bad_example(tmp_path, tokenizer, preferences):
    path = write_jsonl(tmp_path / "x.jsonl", preferences)
    examples, counts = load(path, tokenizer)
    assert len(examples) == 24 and counts.kept == 24
    assert [example.scores for example in examples] == [(1.0,), (0.0,)] * 12
    assert [example.id for example in examples[:2]] == ["p0/chosen", "p0/rejected"]
    assert examples[0].context == examples[1].context
    assert examples[0].responses != examples[1].responses
    assert examples[0].window == DataConfig().max_tokens


@pytest.mark.parametrize("label", [True, False])
def test_data_without_both_labels_are_refused(label, tmp_path, tokenizer):
    lines = [LINE | {"label": label, "prompt": f"Hi {n}?"} for n in range(3)]
    path = write_jsonl(tmp_path / "x.jsonl", lines)
    with pytest.raises(InputError, match=f"all 3 responses are labelled {str(label).lower()}; kto"):
        load(path, tokenizer, format="unpaired")


def test_only_kto_reads_single_responses_and_it_shows_no_rejected_one(tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "x.jsonl", [LINE])
    with pytest.raises(InputError, match="x.jsonl:1: one response with a label; .*kto reads"):
        load(path, tokenizer, needs=Needs(), format="unpaired")
    with pytest.raises(InputError, match="data.contrastive: shows the rejected response"):
        load(path, tokenizer, format="unpaired", contrastive=True)


def test_each_context_is_paired_with_the_response_before_it_in_the_step():
    examples = labelled(5)
    pairs = mismatched(examples)
    assert [pair.context for pair in pairs] == [example.context for example in examples]
    before = [examples[4], *examples[:4]]
    assert [pair.responses for pair in pairs] == [example.responses for example in before]
    assert {pair.scores for pair in pairs} == {(1.0,)}


def test_a_neighbour_of_the_same_context_is_passed_over():
    one, other = labelled(2)
    twin = Encoded("twin", one.context, ((7, 8),), (1.0,), 50)
    pairs = mismatched([one, twin, other])
    assert [pair.responses for pair in pairs] == [other.responses, other.responses, twin.responses]

    # Nothing is mismatched where there is one context alone: a score of 0, which nobody counts.
    assert [pair.scores for pair in mismatched([one, twin])] == [(0.0,), (0.0,)]
    assert [pair.scores for pair in mismatched([one])] == [(0.0,)]


def test_a_mismatched_pair_fits_the_window():
    short = Encoded("short", (3,) * 8, ((4,),), (1.0,), 10)
    long = Encoded("long", (5,), ((6,) * 9,), (0.0,), 10)
    first, second = mismatched([short, long])
    assert first.responses == ((6,) * 2,) and second.responses == ((4,),)


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("micro", [1, 2, 5])
def test_the_pairs_are_those_of_the_step_however_it_is_split(world, micro):
    examples = labelled(5)
    want = {pair.id: pair.responses[0] for pair in mismatched(examples)}
    got = {}
    shares = [micro_batches(examples, micro, rank, world) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    for batch in (batch for share in shares for batch in share):
        assert batch.mismatched is not None, "a filler's forwards are collectives too"
        if not batch.ids:
            continue
        assert batch.mismatched.ids == batch.ids
        for number, name in enumerate(batch.ids):
            mine = batch.mismatched.segments_R == number
            got[name] = tuple(batch.mismatched.targets_R[mine].tolist())
    assert got == want


def test_other_objectives_have_no_mismatched_batch():
    examples = [Encoded(f"e{n}", (n + 3,), ((7,), (8, 9))) for n in range(3)]
    assert all(batch.mismatched is None for batch in micro_batches(examples, 2))
    assert pack(examples).to("cpu").mismatched is None
