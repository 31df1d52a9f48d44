"""AnchorAttention is its formula in loops, and not what its public copies do by mistake."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.policies.anchor_attention import AnchorAttention
from sparselens.kernels.policy import Memory

from .conftest import make_call
from .policy_case import kept


def score(call: AttentionCall, query: Tensor, key: Tensor) -> float:
    scaled = float(query.double() @ key.double()) * call.scale
    return scaled if call.softcap is None else call.softcap * math.tanh(scaled / call.softcap)


def anchor_in_loops(call: AttentionCall, policy: AnchorAttention) -> Tensor:
    n, group = call.k_len, policy.block * policy.step
    mask = torch.zeros(1, call.heads, n, n, dtype=torch.bool)
    for head in range(call.heads):
        query, key = call.query[0, head], call.key[0, head // call.group]
        for begin in range(0, n, group):
            rows = range(begin, min(begin + group, n))
            stripes = set()
            for first in range(begin, rows.stop, policy.block):
                block = range(first, min(first + policy.block, n))
                anchors = []
                for q in block:
                    near = [k for k in range(q + 1) if k < policy.block or k >= begin]
                    anchors.append(max(score(call, query[q], key[k]) for k in near))
                mean = query[block.start : block.stop].double().mean(0)
                for k in range(policy.block, begin):
                    if score(call, mean, key[k]) + policy.theta >= sum(anchors) / len(anchors):
                        stripes.add(k)
            for q in rows:
                for k in range(q + 1):
                    mask[0, head, q, k] = k < policy.block or k >= begin or k in stripes
    return mask


@pytest.mark.parametrize("length", [80, 67, 33])
@pytest.mark.parametrize("theta", [0.0, 1.5, 5.0])
def test_it_is_the_formula_in_loops(length: int, theta: float) -> None:
    policy = AnchorAttention(theta, step=2, block=8)
    call = make_call(length, heads=4, kv_heads=2, dtype=torch.float64)
    assert torch.equal(kept(policy.select(call, Memory()), call), anchor_in_loops(call, policy))


def test_it_uses_the_softcap_of_the_model() -> None:
    policy = AnchorAttention(1.0, step=2, block=8)
    call = make_call(80, heads=2, kv_heads=1, dtype=torch.float64, softcap=2.0)
    mask = kept(policy.select(call, Memory()), call)
    assert torch.equal(mask, anchor_in_loops(call, policy))
    assert not torch.equal(mask, kept(policy.select(replace(call, softcap=None), Memory()), call))


def test_the_difference_is_in_logits_not_in_bits() -> None:
    """One key lies `gap` logits below the anchor: theta decides at the gap, not at the gap times log2(e)."""
    call = make_call(24, heads=1, kv_heads=1, head_dim=1, dtype=torch.float64)
    key = torch.zeros(24, dtype=torch.float64)
    key[0], key[4] = 10.0, 7.0  # gaps of 3 logits to key 4, of 10 to all others
    call = replace(call, query=torch.ones_like(call.query), key=key.view(1, 1, 24, 1), scale=1.0)
    for theta, found in ((2.99, False), (3.01, True), (9.99, True)):
        mask = kept(AnchorAttention(theta, step=1, block=4).select(call, Memory()), call)[0, 0]
        assert bool(mask[20, 4]) == found
        assert not mask[20, 5]


def test_the_last_block_before_a_group_is_scanned_and_the_sink_is_one_block() -> None:
    call = make_call(48, heads=1, kv_heads=1, dtype=torch.float64)
    few = kept(AnchorAttention(0.0, step=2, block=4).select(call, Memory()), call)[0, 0]
    assert few[40, :4].all()
    assert few[40, 40:41].all()
    call.key[0, 0, 37] = 50 * call.query[0, 0, 40:44].mean(0)  # in the block just before the group of 40 … 47
    assert kept(AnchorAttention(0.0, step=2, block=4).select(call, Memory()), call)[0, 0, 40:48, 37].all()


def test_columns_are_shared_by_a_group_and_not_by_query_heads() -> None:
    call = make_call(96)
    mask = kept(AnchorAttention(1.0, step=2, block=8).select(call, Memory()), call)
    assert torch.equal(mask[:, :, 80, :80], mask[:, :, 95, :80])
    assert not torch.equal(mask[:, 0], mask[:, 1])


def test_a_chunk_keeps_what_the_whole_prompt_keeps_for_it() -> None:
    policy = AnchorAttention(1.0, step=2, block=8)
    call = make_call(80, dtype=torch.float64)
    chunk = call.sequence(0, torch.arange(48, 80), torch.arange(80))
    whole = kept(policy.select(call, Memory()), call)[:, :, 48:]
    assert torch.equal(kept(policy.select(chunk, Memory()), chunk), whole)


def test_bad_fields_are_refused() -> None:
    for fields in ({"theta": -1.0}, {"step": 0}, {"block": 0}):
        with pytest.raises(ValueError, match=f"anchor_attention: {next(iter(fields))} is"):
            AnchorAttention(**fields)  # type: ignore[arg-type]


def test_a_wider_policy_keeps_more_and_in_the_end_everything() -> None:
    call = make_call(80)
    policy = AnchorAttention(2.0, step=2, block=8)
    counts = [
        int(kept(policy.wider(factor).select(call, Memory()), call).sum())
        for factor in (0.2, 1.0, 2.0, 100.0)
    ]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] == 6 * 80 * 81 // 2
