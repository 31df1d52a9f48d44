"""MInference's block-sparse template keeps the best blocks by mean-pooled scores, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.policies.block_sparse import BlockSparse
from sparselens.kernels.policy import parse
from sparselens.kernels.selection import Everything

from .block_loops import head_tensors, mean_rows, order, spread
from .conftest import make_call
from .policy_case import chosen, mask_of


def in_loops(policy: BlockSparse, call: AttentionCall) -> Tensor:
    """Top `k` key blocks of each query block by the product of means, in loops."""
    masks = []
    for head in range(call.heads):
        query, key = head_tensors(call, head)
        queries, keys = mean_rows(query, policy.block), mean_rows(key, policy.block)
        kept = set()
        for i, mean in enumerate(queries):
            scores = [float(mean @ keys[j]) for j in range(i + 1)]
            kept |= {(i, j) for j in order(scores)[: policy.k]}
        masks.append(spread(kept, call.q_len, policy.block))
    return torch.stack(masks)[None]


@pytest.mark.parametrize("length", [1, 8, 63, 80])
@pytest.mark.parametrize(("k", "block"), [(1, 8), (3, 8), (2, 16), (1, 100)])
def test_the_mask_is_the_formula(length: int, k: int, block: int) -> None:
    call, policy = make_call(length, dtype=torch.float64), BlockSparse(k, block)
    assert torch.equal(mask_of(str(policy), call), in_loops(policy, call))


def test_a_block_may_drop_its_own_diagonal_and_no_row_is_empty() -> None:
    call = make_call(32, heads=1, kv_heads=1)
    call.key[:] = -1.0
    call.query[:] = 1.0
    call.key[:, :, :8] = 1.0
    mask = mask_of("block_sparse(k=1,block=8)", call)[0, 0]
    assert bool(mask[8:, :8].all())
    assert not mask[8:, 8:].any()
    assert bool(mask.any(-1).all())


def test_under_a_native_window_the_diagonal_is_added_only_where_a_row_would_have_no_key() -> None:
    call = make_call(32, heads=1, kv_heads=1, window=12)
    call.query[:], call.key[:] = 1.0, -1.0
    call.key[:, :, 16:24] = 1.0
    mask = mask_of("block_sparse(k=1,block=8)", call)[0, 0]
    assert bool(mask.any(-1).all())
    # the last block wants keys 16 … 23 alone: its last row still sees key 20, so nothing is added
    assert not mask[24:, 24:].any()
    call = replace(call, allowed=replace(call.allowed, window=6))
    mask = mask_of("block_sparse(k=1,block=8)", call)[0, 0]
    assert bool(mask[31, 26:].all())


def test_the_last_block_is_averaged_over_its_tokens() -> None:
    """Means that took zeros in would shrink the last key block's score to a quarter."""
    call = make_call(18, heads=1, kv_heads=1)
    call.query[:], call.key[:] = 1.0, 1.0
    call.key[:, :, 16:] = 2.0
    mask = mask_of("block_sparse(k=1,block=8)", call)[0, 0]
    assert bool(mask[17, 16:18].all())
    assert not mask[17, :16].any()


def test_rows_of_other_blocks_do_not_matter_later_rows_of_the_block_do() -> None:
    call = make_call(64)
    other, later = replace(call, query=call.query.clone()), replace(call, query=call.query.clone())
    other.query[:, :, 32:] = -9.0
    later.query[:, :, 31] = -9.0
    text = "block_sparse(k=1,block=16)"
    base = mask_of(text, call)
    assert torch.equal(base[:, :, :32], mask_of(text, other)[:, :, :32])
    assert not torch.equal(base[:, :, 16:24], mask_of(text, later)[:, :, 16:24])


def test_it_leaves_decode_dense() -> None:
    assert isinstance(chosen("block_sparse(k=1,block=8)", make_call(40, q_len=1)), Everything)


def test_a_wider_budget_reaches_everything() -> None:
    call, policy = make_call(80), BlockSparse(2, 8)
    sums = [int(mask_of(str(policy.wider(factor)), call).sum()) for factor in (0.5, 1, 2, 3, 5)]
    assert sums == sorted(set(sums))
    assert sums[-1] == 6 * 80 * 81 // 2


@pytest.mark.parametrize(("text", "said"), [("k=0", "k is 1 or more"), ("block=0", "block is 1 or more")])
def test_bad_fields_are_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse(f"block_sparse({text})")
