"""PBS-Attn keeps blocks of keys sorted inside segments, told in loops; masks in the original order."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.policies.pbs_attention import PBSAttention
from sparselens.kernels.policy import Memory
from sparselens.kernels.selection import Groups

from .conftest import make_call
from .policy_case import kept


def softmax(scores: list[float]) -> list[float]:
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    return [weight / sum(weights) for weight in weights]


def sorted_keys(query: Tensor, key: Tensor, policy: PBSAttention, scale: float) -> list[int]:
    """The positions in the order in which they stand after sorting."""
    n, segment = len(key), policy.segment
    complete = n // segment * segment
    importance = [0.0] * complete
    for q in range(max(0, n - policy.block), n):
        row = softmax([float(query[q] @ key[k]) * scale for k in range(complete)]) if complete else []
        importance = [a + b for a, b in zip(importance, row, strict=True)]
    order: list[int] = []
    for start in range(0, complete, segment):
        order += sorted(range(start, start + segment), key=lambda k: -importance[k])
    return order + list(range(complete, n))


def pbs_in_loops(call: AttentionCall, policy: PBSAttention) -> Tensor:
    n, size = call.k_len, policy.block
    mask = torch.zeros(1, call.heads, n, n, dtype=torch.bool)
    for head in range(call.heads):
        query, key = call.query[0, head].double(), call.key[0, head // call.group].double()
        order = sorted_keys(query, key, policy, call.scale)
        members = [order[start : start + size] for start in range(0, n, size)]
        means = [key[block].mean(0) for block in members]
        for begin in range(0, n, size):
            mean = query[begin : begin + size].mean(0)
            segment = begin // policy.segment
            earlier = [b for b in range(len(members)) if b * size // policy.segment < segment]
            chosen = {b for b, block in enumerate(members) if 0 in block}
            if earlier:
                shares = softmax([float(mean @ means[b]) * call.scale for b in earlier])
                reached = 0.0
                for share, block in sorted(zip(shares, earlier, strict=True), reverse=True):
                    chosen.add(block)
                    reached += share
                    if reached >= policy.threshold:
                        break
            for q in range(begin, min(begin + size, n)):
                for b, block in enumerate(members):
                    own = b * size // policy.segment == segment
                    for k in block:
                        mask[0, head, q, k] = k <= q and (own or b in chosen)
    return mask


@pytest.mark.parametrize("length", [96, 83, 24])
@pytest.mark.parametrize("threshold", [0.3, 0.8])
def test_it_is_the_formula_in_loops(length: int, threshold: float) -> None:
    policy = PBSAttention(threshold, segment=16, block=8)
    call = make_call(length, heads=4, kv_heads=2, dtype=torch.float64)
    mask = kept(policy.select(call, Memory()), call)
    assert torch.equal(mask, pbs_in_loops(call, policy))
    assert int(mask.sum()) < 4 * length * (length + 1) // 2 or length == 24


def test_important_keys_stand_together_and_masks_keep_the_original_order() -> None:
    call = make_call(64, heads=1, kv_heads=1, dtype=torch.float64)
    call.key[0, 0, [1, 6, 9, 14]] = 3 * call.query[0, 0, 56:].mean(0)  # scattered over the first segment
    policy = PBSAttention(0.5, segment=16, block=4)
    selection = policy.select(call, Memory())
    assert isinstance(selection, Groups)
    assert set(selection.key_group[0, 0, [1, 6, 9, 14]].tolist()) == {0}
    mask = kept(selection, call)[0, 0]
    assert mask[60, [1, 6, 9, 14]].all()
    together = selection.key_group[0, 0] == 0
    assert torch.equal(mask[60, :16] & together[:16], together[:16])


def test_the_importance_knows_no_causality() -> None:
    """A key that only earlier queries of the last block may not see counts for them all the same."""
    call = make_call(32, heads=1, kv_heads=1, dtype=torch.float64)
    call.query[0, 0, 24:] = 0.0
    call.query[0, 0, 24] = 4.0
    call.key[0, 0, 31] = 2.0
    groups = PBSAttention(0.5, segment=16, block=8).select(call, Memory()).key_group[0, 0]  # type: ignore[attr-defined]
    assert int(groups[31]) == 2


def test_one_dominating_block_is_kept_alone_with_the_forced_ones() -> None:
    call = make_call(64, heads=1, kv_heads=1, dtype=torch.float64)
    call.key[0, 0, 16:32:2] = 100 * call.query[0, 0, 56:].mean(0)
    mask = kept(PBSAttention(0.9, segment=16, block=8).select(call, Memory()), call)[0, 0, 63]
    others = mask.clone()
    others[48:] = False  # the own segment
    assert others[16:32:2].all()
    assert others[0]
    assert int(others.sum()) == 16  # that block and the one with token 0


def test_a_threshold_that_rounding_never_reaches_keeps_all_and_not_none() -> None:
    call = make_call(80)
    full = 6 * 80 * 81 // 2
    for threshold in (1.0, math.nextafter(1.0, 0.0)):
        assert (
            int(kept(PBSAttention(threshold, segment=16, block=8).select(call, Memory()), call).sum())
            >= full * 0.99
        )
    assert int(kept(PBSAttention(1.0, segment=16, block=8).select(call, Memory()), call).sum()) == full
    assert (
        int(kept(PBSAttention(0.9, segment=16, block=8).wider(1e30).select(call, Memory()), call).sum())
        == full
    )


def test_one_segment_is_dense() -> None:
    call = make_call(32)
    mask = kept(PBSAttention(0.1, segment=32, block=8).select(call, Memory()), call)
    assert torch.equal(mask, torch.ones(32, 32, dtype=torch.bool).tril().expand(1, 6, -1, -1))


def test_a_native_window_takes_no_share() -> None:
    """Blocks that lie behind the model's window are no candidates: the share is of what can be read."""
    policy = PBSAttention(0.9, segment=16, block=8)
    call = make_call(80, heads=2, kv_heads=1, dtype=torch.float64, window=24)
    call.key[0, 0, :16] = 100 * call.query[0, 0, 72:].mean(0)  # would take all mass of the last rows
    mask = kept(policy.select(call, Memory()), call)
    assert mask[0, 0, 79, 56:64].any()
    assert torch.equal(mask.any(-1), torch.ones(1, 2, 80, dtype=torch.bool))
    assert not torch.equal(mask, kept(policy.select(replace(call, key=call.key.flip(2)), Memory()), call))


def test_bad_fields_are_refused() -> None:
    for fields in ({"threshold": 0.0}, {"threshold": 1.1}, {"block": 0}, {"segment": 200}):
        with pytest.raises(ValueError, match=f"pbs_attention: {next(iter(fields))} "):
            PBSAttention(**fields)  # type: ignore[arg-type]
