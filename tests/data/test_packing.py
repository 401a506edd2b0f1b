"""Packed and unpacked agree: log-probs, KL, gradients. Truncation and batches by their rules."""

import pytest
import torch

from ecliptica.data import packing
from ecliptica.data.packing import pack
from ecliptica.data.settings import DataConfig
from ecliptica.data.templates import get_template
from ecliptica.policy import adapter_off_reference, score
from ecliptica.schema import Counts, Encoded, Preference
from model.attention import PaddedPacked
from model.errors import InputError
from model.lora import add_lora, lora_layers
from model.weights import load_model


@pytest.fixture(scope="module")
def policy(tiny):
    model = add_lora(load_model(tiny), 4, 8, ("q_proj", "v_proj", "down_proj"))
    for layer in lora_layers(model).values():
        layer.lora_B.data.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    return model


def examples(count=6, responses=3):
    g = torch.Generator().manual_seed(0)

    def ids(low, high):
        return tuple(
            torch.randint(
                3, 49152, (int(torch.randint(low, high, (1,), generator=g)),), generator=g
            ).tolist()
        )

    return [
        Encoded(
            f"e{n}", ids(1, 40), tuple(ids(1, 25) for _ in range(responses)), (0.0,) * responses
        )
        for n in range(count)
    ]


def measure(model, groups):
    """Per-sequence numbers, and gradients of their weighted sum, over packed groups of examples."""
    model.zero_grad()
    logp, kl = [], []
    for group in groups:
        stats = score(model, pack(group), adapter_off_reference(model))
        logp.append(stats.logp_S)
        kl.append(stats.kl_S)
        (stats.logp_S.sum() + 0.5 * stats.kl_S.sum()).backward()
    return (
        torch.cat(logp).detach(),
        torch.cat(kl).detach(),
        [p.grad.clone() for p in model.parameters() if p.grad is not None],
    )


def test_packing_equals_one_sequence_at_a_time(policy):
    packed = examples()
    alone = [
        [Encoded(e.id, e.context, (response,), (0.0,))] for e in packed for response in e.responses
    ]
    want, got = measure(policy, alone), measure(policy, [packed])
    assert (got[0] - want[0]).abs().max() < 2e-4 and (got[1] - want[1]).abs().max() < 2e-4
    assert len(got[2]) == 12 and all(
        (a - b).abs().max() <= 1e-4 * b.abs().max() for a, b in zip(got[2], want[2])
    )


def test_a_head_that_all_contexts_share_is_computed_once(policy):
    """The same numbers and gradients as one sequence at a time, from fewer tokens."""
    shared = tuple(range(50, 62))
    several = [
        Encoded(e.id, shared + e.context, e.responses, e.scores) for e in examples(4, responses=2)
    ]
    batch = pack(several)
    assert batch.tokens_T[:12].tolist() == list(shared)
    assert batch.tokens_T.numel() == sum(e.tokens for e in several) - 3 * 12
    alone = [
        [Encoded(e.id, e.context, (response,), (0.0,))] for e in several for response in e.responses
    ]
    want = measure(policy, alone)
    got = measure(policy, [several])
    for name, ours, theirs in zip(("logp", "kl"), got, want):
        assert (ours - theirs).abs().max() < 2e-4, name
    for ours, theirs in zip(got[2], want[2], strict=True):
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_a_head_of_a_few_tokens_is_not_worth_a_call():
    several = [Encoded("e", (9, 9, n), ((4,),), (0.0,)) for n in range(3, 8)]
    assert pack(several).document_T.min() == 0


def test_log_probs_equal_dense_float64(policy, tiny):
    """Every response behind its own copy of the prompt, full logits, float64."""
    wide = load_model(tiny, torch.float64)
    for example, logp in zip(
        examples(2), score(load_model(tiny), pack(examples(2)), grad=False).logp_S.view(2, 3)
    ):
        for response, got in zip(example.responses, logp):
            tokens = torch.tensor(example.context + response)
            nothing = torch.zeros_like(tokens)
            with torch.no_grad():
                table = wide.forward_logits(
                    tokens, torch.arange(len(tokens)), PaddedPacked(nothing, nothing)
                ).log_softmax(-1)
            rows = torch.arange(len(example.context) - 1, len(tokens) - 1)
            assert abs(table[rows, torch.tensor(response)].sum() - got) < 1e-3


def test_layout_of_a_packed_preference():
    batch = pack([Encoded("a", (5, 6), ((7, 8), (9,))), Encoded("b", (5,), ((2,), (2, 2)))])
    assert batch.tokens_T.tolist() == [5, 6, 7, 8, 9, 5, 2, 2, 2]
    assert batch.positions_T.tolist() == [0, 1, 2, 3, 2, 0, 1, 1, 2]
    assert batch.rows_R.tolist() == [1, 2, 1, 5, 5, 7]
    assert batch.targets_R.tolist() == [7, 8, 9, 2, 2, 2]
    assert batch.segments_R.tolist() == [0, 0, 1, 2, 3, 3] and batch.owner_S.tolist() == [
        0,
        0,
        1,
        1,
    ]


def test_a_response_of_no_tokens_is_named_before_the_work():
    example = Encoded("d.jsonl:3", (5, 6), ((7,), ()))
    for lay in (pack, lambda examples: packing.by_prefix(examples, 100)):
        with pytest.raises(InputError, match="d.jsonl:3: response 2 has no tokens"):
            lay([Encoded("a", (5,), ((2,),)), example])


def preference(words, chosen="Yes indeed.", rejected="No, never."):
    return Preference(
        "x",
        " ".join(f"word{n}" for n in range(words)),
        (chosen, rejected),
        "Keep this instruction whole.",
    )


def test_truncation_cuts_the_prompt_on_the_left_then_responses_on_the_right(tokenizer):
    template, counts = get_template("chatml", tokenizer), Counts()

    def encode(preference, tokenizer, template, max_tokens, counts):
        return packing.encode(
            preference, tokenizer, template, DataConfig(max_tokens=max_tokens), counts
        )

    end = tokenizer.token_id("<|im_end|>")
    whole = encode(preference(300), tokenizer, template, 4096, counts)
    cut = encode(preference(300), tokenizer, template, 200, counts)
    assert (
        len(cut.context) + max(map(len, cut.responses)) <= 200 and cut.responses == whole.responses
    )
    text = tokenizer.decode(cut.context)
    assert "Keep this instruction whole." in text and "word299" in text and "word0 " not in text
    long = encode(preference(300, chosen="so " * 400), tokenizer, template, 200, counts)
    assert len(long.context) + len(long.responses[0]) == 200 and end not in long.responses[0]
    assert long.responses[1][-1] == end and "word299" in tokenizer.decode(long.context)
    assert encode(preference(300), tokenizer, template, 20, counts) is None
    same = Preference("same", "p", ("yes " * 300 + "a", "yes " * 300 + "b"), "I")
    assert encode(same, tokenizer, template, 64, counts) is None
    assert (counts.kept, counts.prompts_cut, counts.responses_cut, counts.dropped) == (
        3,
        2,
        3,
        ["x", "same"],
    )


def grid_of_contexts(prompts=6, instructions=3):
    """Every prompt under every instruction, prompt by prompt, with two responses each."""
    template, body, end = tuple(range(100, 110)), tuple(range(200, 203)), tuple(range(300, 305))
    made = []
    for x in range(prompts):
        for j in range(instructions):
            said = tuple(range(1000 + 50 * j, 1000 + 50 * j + 20))
            asked = tuple(range(3000 + 40 * x, 3000 + 40 * x + 12))
            context = (*template, *said, *body, *asked, *end)
            responses = tuple(tuple(range(5000 + 7 * k, 5015 + 7 * k)) for k in (x, x + j + 1))
            made.append(Encoded(f"{x}/{j}", context, responses, (0.0, 0.0)))
    return made


def test_contexts_of_one_instruction_stand_in_one_batch():
    """50 tokens of context, 33 of them shared, and 30 of responses: ten fit into 10 * 47 + 33."""
    made = grid_of_contexts(prompts=10)
    groups = packing.by_prefix(made, 10 * 47 + 33)
    assert sorted(len(group) for group in groups) == [10, 10, 10]
    for group in groups:
        assert len({made[index].id.split("/")[1] for index in group}) == 1
        batch = pack([made[index] for index in group])
        assert packing.packed_tokens([made[index] for index in group]) == batch.tokens_T.numel()
        assert batch.tokens_T.numel() == 10 * 47 + 33
    assert sorted(sum(groups, [])) == list(range(30)), "each once"
    assert [len(group) for group in packing.by_prefix(made, 1)] == [1] * 30


@torch.no_grad()
def test_scores_of_the_tree_equal_those_of_one_context_at_a_time(policy):
    made = grid_of_contexts()
    groups = packing.by_prefix(made, 500)
    assert len(groups) < len(made)
    for group in groups:
        packed = score(policy, pack([made[index] for index in group]), grad=False)
        alone = [score(policy, pack([made[index]]), grad=False).logp_S for index in group]
        torch.testing.assert_close(packed.logp_S, torch.cat(alone), rtol=1e-5, atol=1e-4)
