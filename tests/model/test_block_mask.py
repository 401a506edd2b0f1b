"""FlexAttention's blocks, made from lengths, against torch's own from every pair of tokens."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from model.attention import LEAST_TOKENS, FlexPacked, block_mask, padded, visible


def layout(head, documents):
    """document_T and branch_T of a head and documents (prompt, response, ...) of given lengths."""
    document = [-1] * head
    branch = [0] * head
    for number, lengths in enumerate(documents):
        for part, length in enumerate(lengths):
            document += [number] * length
            branch += [part] * length
    return torch.tensor(document), torch.tensor(branch)


LAYOUTS = {
    "one long document": layout(0, [(900, 300, 200)]),
    "a head of whole blocks": layout(256, [(128, 256, 256), (128, 128, 5)]),
    "many short ones": layout(37, [(30 + n, 20, 3 * n + 1) for n in range(14)]),
    "nothing whole": layout(0, [(7, 400, 90), (131, 60, 1)]),
    "T a multiple of 128": layout(0, [(384, 128, 128)]),
}


def dense(count, order, blocks):
    """Lists of blocks as a matrix."""
    out = torch.zeros(blocks, blocks, dtype=torch.bool)
    for row in range(blocks):
        out[row, order[0, 0, row, : count[0, 0, row]].long()] = True
    return out


@pytest.mark.parametrize("name", LAYOUTS)
def test_blocks_from_lengths_are_those_of_every_pair(name):
    document_T, branch_T = LAYOUTS[name]
    T = len(document_T)

    def rule(batch, head, query, key):
        return visible(document_T, branch_T, query, key)

    got = block_mask(document_T, branch_T)
    want = create_block_mask(rule, None, None, T, T, device="cpu")
    blocks = -(-T // 128)
    assert got.seq_lengths == want.seq_lengths
    for kind in ("kv", "full_kv", "q", "full_q"):
        lists = [
            dense(getattr(mask, f"{kind}_num_blocks"), getattr(mask, f"{kind}_indices"), blocks)
            for mask in (got, want)
        ]
        assert torch.equal(*lists), kind


def test_short_batches_are_padded_to_one_kind_of_graph():
    """And every token has the attention that it has without."""
    document_T, branch_T = layout(4, [(9, 3, 5)])
    assert len(padded(document_T, branch_T)[0]) == LEAST_TOKENS
    whole = LAYOUTS["one long document"]
    assert padded(*whole)[0] is whole[0]
    attend = FlexPacked(document_T, branch_T)
    assert attend.block_mask.seq_lengths == (LEAST_TOKENS, LEAST_TOKENS)
    q, k, v = (torch.randn(21, heads, 16) for heads in (4, 2, 2))
    out = attend(0, q, k, v)
    assert out.shape == (21, 4, 16) and out.isfinite().all()
