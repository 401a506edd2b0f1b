"""`eval.py kl` against the training log, float64 sums over the vocabulary, and itself."""

import json
import re

import pytest
import torch

import eval as evaluate
import train
from ecliptica.data.templates import encode_pieces, get_template, render_context, response_pieces
from model.attention import packed_attention
from model.errors import InputError
from model.lora import adapters_off, load_adapter
from model.weights import load_model
from tests.conftest import write_jsonl, write_tiny
from tests.evaluation.conftest import lines_of

RECORDS = [
    {"instruction": "Be kind.", "prompt": "What of rain?", "responses": ["It falls.", "No."]},
    {"prompt": "And snow?", "responses": ["Softly, and for a long while."]},
]


def kl_of(tmp_path, model, records, *options):
    """The lines that the command writes."""
    data, out = write_jsonl(tmp_path / "in.jsonl", records), tmp_path / "out.jsonl"
    words = ["kl", "--model", model, "--template", "chatml", "--data", data, "--out", out]
    evaluate.main([str(word) for word in [*words, *options]])
    return lines_of(out)


def logits_of(model, ids):
    """[T, V] in float64."""
    zeros = torch.zeros(len(ids), dtype=torch.int64)
    attend = packed_attention(zeros, zeros)
    with torch.no_grad():
        return model.forward_logits(torch.tensor(ids), torch.arange(len(ids)), attend).double()


def kl_by_hand(policy_TV, reference_TV, start):
    """Sum over the positions that predict what stands from `start` on."""
    p_TV = policy_TV[start - 1 : -1].log_softmax(-1)
    q_TV = reference_TV[start - 1 : -1].log_softmax(-1)
    return float((p_TV.exp() * (p_TV - q_TV)).sum())


def sequences(tokenizer):
    """(context, response) of every response, as ids."""
    template = get_template("chatml", tokenizer)
    for record in RECORDS:
        pieces = render_context(template, record["prompt"], record.get("instruction"))
        for text in record["responses"]:
            response = encode_pieces(tokenizer, response_pieces(template, text))
            yield encode_pieces(tokenizer, pieces), response


def test_the_kl_to_the_base_is_the_sum_over_the_vocabulary(
    tiny, adapter, tokenizer, tmp_path, capsys
):
    lines = kl_of(tmp_path, tiny, RECORDS, "--adapter", adapter)
    model = load_adapter(load_model(tiny, torch.float32, "cpu"), adapter)
    want, tokens = [], []
    for context, response in sequences(tokenizer):
        policy = logits_of(model, context + response)
        with adapters_off(model):
            reference = logits_of(model, context + response)
        want.append(kl_by_hand(policy, reference, len(context)))
        tokens.append(len(response))
    assert [kl for line in lines for kl in line["kl"]] == pytest.approx(want, rel=1e-4)
    assert [count for line in lines for count in line["tokens"]] == tokens

    # What is printed: the mean a token over all tokens, inside its interval.
    mean, low, high = map(
        float,
        re.search(r"([\d.]+) a token \[([\d.]+), ([\d.]+)\]", capsys.readouterr().out).groups(),
    )
    assert mean == pytest.approx(sum(want) / sum(tokens), abs=2e-6)
    assert low <= mean <= high


def test_the_kl_to_another_model_has_a_direction(tiny, smollm2, tokenizer, tmp_path):
    other = write_tiny(tmp_path / "other", smollm2, seed=7)
    there = kl_of(tmp_path, tiny, RECORDS, "--reference", other)
    back = kl_of(tmp_path, other, RECORDS, "--reference", tiny)
    models = [load_model(path, torch.float32, "cpu") for path in (tiny, other)]
    want, want_back = [], []
    for context, response in sequences(tokenizer):
        first, second = (logits_of(model, context + response) for model in models)
        want.append(kl_by_hand(first, second, len(context)))
        want_back.append(kl_by_hand(second, first, len(context)))
    assert [kl for line in there for kl in line["kl"]] == pytest.approx(want, rel=1e-4)
    assert [kl for line in back for kl in line["kl"]] == pytest.approx(want_back, rel=1e-4)
    same = kl_of(tmp_path, tiny, RECORDS, "--reference", tiny)
    assert all(kl == pytest.approx(0, abs=1e-5) for line in same for kl in line["kl"])


def test_along_own_answers_is_along_what_generate_writes(tiny, adapter, tmp_path):
    records = [{"instruction": "Be kind.", "prompt": "What of rain?"}]
    options = ["--adapter", adapter, "--max-new-tokens", "6"]
    (line,) = kl_of(tmp_path, tiny, records, *options, "--answers")
    out = tmp_path / "answers.jsonl"
    words = ["generate", "--model", tiny, "--template", "chatml", "--out", out, *options]
    evaluate.main([str(word) for word in [*words, "--data", tmp_path / "in.jsonl"]])
    assert line["text"] == lines_of(out)[0]["text"]
    assert len(line["kl"]) == 1 and line["kl"][0] > 0 and line["tokens"][0] in (6, 7)


def test_the_kl_is_that_of_the_training_log(tiny, preferences, tmp_path):
    """The held-out line of the last step, a preference's two responses together."""
    data = write_jsonl(tmp_path / "train.jsonl", preferences)
    (tmp_path / "r.toml").write_text(f"""
        model = {{path = "{tiny}", dtype = "float32"}}
        data = {{train = "{data}", eval = "{data}", template = "chatml"}}
        lora = {{rank = 4}}
        run = {{dir = "{tmp_path}/run"}}
        [training]
        max_steps = 3
        eval_every = 3
        batch_preferences = 4
        lr = 1e-2
        device = "cpu"
        """)
    train.main([str(tmp_path / "r.toml")])
    logged = lines_of(tmp_path / "run" / "eval.jsonl")[-1]
    records = []
    for preference in preferences:
        responses = [preference["chosen"], preference["rejected"]]
        records.append(preference | {"responses": responses})
    lines = kl_of(tmp_path, tiny, records, "--adapter", tmp_path / "run" / "final")
    mean = sum(sum(line["kl"]) for line in lines) / len(lines)
    assert logged["kl"] > 0.01, "the run has moved the model"
    assert mean == pytest.approx(logged["kl"], rel=1e-4)


def test_what_is_no_pair_of_models_is_refused(tiny, smollm2, tmp_path):
    with pytest.raises(InputError, match="a KL is between two models; give --adapter"):
        kl_of(tmp_path, tiny, RECORDS)
    with pytest.raises(InputError, match="in.jsonl:1: 'responses' must be a list"):
        kl_of(tmp_path, tiny, [{"prompt": "Hi?"}], "--reference", tiny)
    wider = write_tiny(tmp_path / "wider", smollm2, vocab_size=49160)
    with pytest.raises(InputError, match="49160 tokens, .* has 49152"):
        kl_of(tmp_path, tiny, RECORDS, "--reference", wider)

    # As many tokens, and another one under an id that occurs.
    renamed = write_tiny(tmp_path / "renamed", smollm2)
    path = renamed / "tokenizer.json"
    raw = json.loads(path.read_text())
    words = {index: word for word, index in raw["model"]["vocab"].items()}
    used = raw["model"]["vocab"]["No"]
    other = words[used + 1]
    raw["model"]["vocab"] |= {"No": used + 1, other: used}
    path.write_text(json.dumps(raw))
    with pytest.raises(InputError, match="a KL needs two models of one vocabulary"):
        kl_of(tmp_path, tiny, RECORDS, "--reference", renamed)
