"""ProxyAttn as its summaries tell it, in loops: one ranking for a group of heads, a budget for each head."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.policies.proxy_attention import ProxyAttention
from sparselens.kernels.policy import Memory

from .conftest import exact, make_call
from .policy_case import kept


def row_weights(query: Tensor, key: Tensor, q: int, scale: float) -> list[float]:
    scores = torch.stack([query[q] @ key[k] for k in range(q + 1)]) * scale
    return torch.softmax(scores, 0).tolist()


def budget_in_loops(weights: Tensor, policy: ProxyAttention) -> int:
    n = weights.shape[-1]
    rows = range(max(0, n - policy.block), n)
    mean = [sum(float(weights[q, k]) for q in rows) / len(rows) for k in range(n)]
    blocks = [mean[at : at + policy.block] for at in range(0, n, policy.block)]
    masses = sorted((sum(block) / len(block) for block in blocks), reverse=True)
    reached, count = 0.0, 0
    for mass in masses:
        reached, count = reached + mass, count + 1
        if reached >= policy.gamma * sum(masses):
            break
    return max(count, -(-policy.min_budget // policy.block))


def proxy_in_loops(call: AttentionCall, policy: ProxyAttention) -> Tensor:
    n, size, heads = call.k_len, policy.block, call.heads // policy.proxies
    mask = torch.zeros(1, call.heads, n, n, dtype=torch.bool)
    dense = exact(call, torch.ones(1, 1, n, n, dtype=torch.bool)).weights[0]
    for head in range(call.heads):
        group = head // heads
        members = range(group * heads, (group + 1) * heads)
        query = sum(call.query[0, h].double() for h in members) / heads
        key = sum(call.key[0, h // call.group].double() for h in members) / heads
        count = budget_in_loops(dense[head], policy)
        for begin in range(0, n, size):
            rows = range(begin, min(begin + size, n))
            weights = [row_weights(query, key, q, call.scale) for q in rows[:: policy.stride]]
            visible = begin // size + 1
            largest = [
                max(w for row in weights for w in [0.0, *row[b * size : (b + 1) * size]])
                for b in range(visible)
            ]
            chosen = set(sorted(range(visible), key=lambda b: -largest[b])[:count]) | {0, visible - 1}
            for q in rows:
                for k in range(q + 1):
                    mask[0, head, q, k] = k // size in chosen
    return mask


@pytest.mark.parametrize("length", [80, 69])
@pytest.mark.parametrize("proxies", [1, 2])
def test_it_is_the_summaries_formula_in_loops(length: int, proxies: int) -> None:
    policy = ProxyAttention(0.6, proxies, stride=3, min_budget=0, block=8)
    call = make_call(length, heads=4, kv_heads=2, dtype=torch.float64)
    mask = kept(policy.select(call, Memory()), call)
    assert torch.equal(mask, proxy_in_loops(call, policy))
    assert int(mask.sum()) < 4 * length * (length + 1) // 2


def test_heads_share_the_ranking_and_not_the_budget() -> None:
    """Of two heads of a group the one with the smaller budget keeps a part of what the other keeps."""
    call = make_call(96)
    mask = kept(ProxyAttention(0.6, stride=1, min_budget=0, block=8).select(call, Memory()), call)[0]
    sizes = mask.sum((-1, -2))
    assert len(sizes.unique()) > 1
    for a in range(6):
        for b in range(6):
            if sizes[a] <= sizes[b]:
                assert not (mask[a] & ~mask[b]).any()


def test_one_strong_token_is_enough_for_its_block() -> None:
    """The largest weight ranks, not the mean: a single key beats a block that is better on average."""
    call = make_call(64, heads=1, kv_heads=1, dtype=torch.float64)
    call.query[:] = 0.0
    call.query[..., 0] = 1.0
    call.key[:] = 0.0
    call.key[0, 0, 18, 0] = 12.0
    call.key[0, 0, 32:40, 0] = 9.0  # together more mass than the single key
    mask = kept(ProxyAttention(0.3, stride=1, min_budget=0, block=8).select(call, Memory()), call)[0, 0, 63]
    assert mask[16:24].all()
    assert not mask[32:40].any()


def test_the_least_budget_is_in_tokens() -> None:
    call = make_call(96)
    mask = kept(ProxyAttention(1e-6, min_budget=32, block=8).select(call, Memory()), call)
    assert bool((mask[:, :, 95].sum(-1) >= 32).all())
    assert torch.equal(
        kept(ProxyAttention().select(call, Memory()), call),
        torch.ones(96, 96).bool().tril().expand(1, 6, -1, -1),
    )


def test_proxies_must_divide_the_key_value_heads() -> None:
    with pytest.raises(ValueError, match="proxies divide the model's 2 key-value heads"):
        ProxyAttention(proxies=3).select(make_call(40), Memory())
    for fields in ({"gamma": 0.0}, {"proxies": 0}, {"stride": 0}, {"min_budget": -1}):
        with pytest.raises(ValueError, match=f"proxy_attention: {next(iter(fields))} "):
            ProxyAttention(**fields)  # type: ignore[arg-type]


def test_a_wider_policy_keeps_more_and_in_the_end_everything() -> None:
    call = make_call(80)
    policy = ProxyAttention(0.5, min_budget=0, block=8)
    counts = [int(kept(policy.wider(f).select(call, Memory()), call).sum()) for f in (0.1, 1.0, 5.0, 1e30)]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] == 6 * 80 * 81 // 2
