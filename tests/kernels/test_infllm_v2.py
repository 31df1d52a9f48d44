"""InfLLM-V2 is its geometry retold in loops: mean keys, sums over the group, pooling, forced blocks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.parts.block import Blocks
from sparselens.kernels.policies.infllm_v2 import InfLlmV2

from .conftest import make_call
from .policy_case import chosen, kept, mask_of

POLICY = InfLlmV2(topk=4, block=8, kernel=4, stride=2, init=1, window=8)


def in_loops(call: AttentionCall, policy: InfLlmV2) -> tuple[Tensor, Tensor]:
    """Scores `[kv_heads, q, blocks]` and mask `[heads, q, k]` of one sequence, in loops over float64."""
    n, group = call.k_len, call.group
    blocks = -(-n // policy.block)
    scores = torch.zeros(call.kv_heads, n, blocks, dtype=torch.float64)
    mask = torch.zeros(call.heads, n, n, dtype=torch.bool)
    for shared in range(call.kv_heads):
        means = {
            j: call.key[0, shared, j * policy.stride : j * policy.stride + policy.kernel].double().mean(0)
            for j in range(n)
            if j * policy.stride + policy.kernel <= n
        }
        for q in range(n):
            weight = dict.fromkeys(means, 0.0)
            seen = [j for j in means if j * policy.stride + policy.kernel - 1 <= q]
            for head in range(shared * group, (shared + 1) * group):
                dots = {
                    j: math.exp(float(call.query[0, head, q].double() @ means[j]) * call.scale) for j in seen
                }
                for j in seen:
                    weight[j] += dots[j] / sum(dots.values())
            own = q // policy.block
            ranked = []
            for block in range(own + 1):
                wide = policy.block // policy.stride
                pooled = [weight.get(j, 0.0) for j in range(block * wide - 1, block * wide + wide)]
                scores[shared, q, block] = max(pooled)
                forced = block < policy.init or own - policy.window // policy.block <= block
                ranked.append((math.inf if forced else max(pooled), -block))
            for _, block in sorted(ranked, reverse=True)[: policy.topk]:
                for k in range(-block * policy.block, min(n, (-block + 1) * policy.block)):
                    mask[shared * group : (shared + 1) * group, q, k] = k <= q
    return scores, mask


@pytest.mark.parametrize("length", [80, 67, 3])
def test_it_is_its_geometry_in_loops(length: int) -> None:
    call = make_call(length)
    scores, mask = in_loops(call, POLICY)
    found = POLICY.scores(Blocks.of(call, 1, POLICY.block))
    seen = torch.ones(length, length, dtype=torch.bool).tril()[:, :: POLICY.block]
    assert torch.allclose(found.double()[:, seen], scores[:, seen], atol=1e-6)
    assert torch.equal(mask_of(str(POLICY), call)[0], mask)


def test_the_papers_geometry_pools_five_mean_keys_with_stride_four_from_one_before() -> None:
    """One weight on one mean key: the blocks in which it counts are those of a 5/4/1 max-pool."""
    policy = InfLlmV2()
    call = make_call(512, heads=1, kv_heads=1)
    for j in (0, 3, 4, 7, 11):
        call.key.zero_()
        call.key[0, 0, j * 16 : j * 16 + 32] = 50.0
        call.query.fill_(1.0)
        scores = policy.scores(Blocks.of(call, 1, 64))[0, 511]
        pooled = torch.nn.functional.max_pool1d(torch.eye(31)[j][None], 5, 4, 1)[0]
        assert torch.equal(scores[: len(pooled)] > 0.9, pooled > 0.9), j


def test_one_block_more_than_the_window_is_forced() -> None:
    mask = mask_of("infllm_v2(topk=4,block=8,kernel=4,stride=2,init=1,window=16)", make_call(80))[0]
    for q in range(24, 80):
        own = q // 8
        assert mask[:, q, (own - 2) * 8 : q + 1].all()  # the own block and two before it
        assert mask[:, q, :8].all()
        assert int(mask[0, q].view(10, 8).any(1).sum()) == 4  # forced blocks count


def test_weights_are_summed_after_the_softmax() -> None:
    """A head with large scores does not outvote the others, as it would in a sum of scores."""
    call = make_call(80, heads=2, kv_heads=1)
    before = POLICY.scores(Blocks.of(call, 1, 8))
    call.query[:, 0] = 0.0  # equal weights: the same for every mean key
    call.query[:, 1] *= 100.0
    scores = POLICY.scores(Blocks.of(call, 1, 8))
    seen = (torch.arange(80)[:, None] >= torch.arange(39) * 2 + 3).sum(1)
    assert float(scores.max()) <= 1 + 1 / 1 + 1e-6
    assert torch.allclose(scores[0, 79].min(), 1 / seen[79].float(), atol=1e-6)
    assert not torch.equal(before, scores)


def test_fields_that_cannot_be_raise() -> None:
    for wrong, said in (
        ({"topk": 33}, "34 forced blocks"),
        ({"block": 40}, "multiple of stride"),
        ({"window": 100}, "multiple of block"),
        ({"stride": 0}, "stride"),
        ({"kernel": 0}, "kernel"),
        ({"init": -1}, "init"),
    ):
        with pytest.raises(ValueError, match=said):
            InfLlmV2(**wrong)


def test_wider_counts_what_is_forced() -> None:
    assert POLICY.wider(2.0) == InfLlmV2(topk=8, block=8, kernel=4, stride=2, init=1, window=16)
    assert POLICY.wider(0.1).topk == 2  # the first block and the own one


def test_keys_that_a_native_window_dropped_from_the_cache_change_nothing() -> None:
    call = make_call(80, window=20)
    whole = mask_of(str(POLICY), call)[:, :, -1]
    last = call.sequence(0, torch.tensor([79]), torch.arange(80))
    short = call.sequence(0, torch.tensor([79]), torch.arange(60, 80))
    scores = [POLICY.scores(Blocks.of(one, 1, 8))[:, 0] for one in (last, short)]
    a, b = (score[:, 8:] for score in scores)  # the blocks that the cache holds whole
    assert torch.allclose(a, b, atol=1e-6)
    assert torch.equal(kept(chosen(str(POLICY), short), short)[0, :, 0], whole[0, :, 60:])
