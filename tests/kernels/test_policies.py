"""Windows, stripes, mixtures and references are what their formulas say, in loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.policies.oracle_mass import OracleMass
from sparselens.kernels.policies.oracle_topk import OracleTopK
from sparselens.kernels.policies.random import Random
from sparselens.kernels.policies.vertical_slash import VerticalSlash
from sparselens.kernels.policy import Memory, Policy
from sparselens.kernels.selection import Everything

from .conftest import difference, exact, make_call
from .policy_case import chosen, kept


def test_a_window_counts_the_query_itself() -> None:
    call = make_call(20)
    assert torch.equal(
        kept(chosen("sliding_window(window=1)", call), call)[0, 0], torch.eye(20, dtype=torch.bool)
    )


def test_density_of_a_shape_is_its_formula() -> None:
    call = make_call(50)
    pairs = sum(min(q + 1, 9) + min(3, max(0, q + 1 - 9)) for q in range(50))
    density = chosen("a_shape(sink=3,window=9)", call).density(call)
    assert density.flatten().tolist() == pytest.approx([pairs / (50 * 51 / 2)] * 6)


def test_per_head_keeps_the_named_heads_of_its_layer_dense() -> None:
    text = "per_head(default=a_shape(sink=1,window=5),full=[L0H1,L3H0])"
    for layer, dense in ((0, 1), (3, 0), (7, None)):
        call = make_call(40, layer=layer)
        mask = kept(chosen(text, call), call)
        for head in range(6):
            expected = "dense" if head == dense else "a_shape(sink=1,window=5)"
            assert torch.equal(mask[:, head], kept(chosen(expected, call), call)[:, head])


def test_per_head_respects_the_phase_of_its_default() -> None:
    text = "per_head(default=a_shape(sink=1,window=5,phase=prefill),full=[L0H1])"
    assert isinstance(chosen(text, make_call(40, q_len=1)), Everything)


def test_a_head_the_layer_lacks_raises() -> None:
    with pytest.raises(ValueError, match="layer 0 has 6 heads"):
        chosen("per_head(default=a_shape,full=[L0H6])", make_call(20))


def vertical_slash_in_loops(call: AttentionCall, policy: VerticalSlash) -> Tensor:
    """The paper's rule for one sequence, in loops over float64 weights."""
    n = call.k_len
    weights = exact(call, torch.ones(1, 1, n, n, dtype=torch.bool)).weights[0]
    mask = torch.zeros(call.heads, n, n, dtype=torch.bool)
    for head in range(call.heads):
        by_key, by_distance = [0.0] * n, [0.0] * n
        for q in range(max(0, n - policy.last_q), n):
            for k in range(q + 1):
                by_key[k] += float(weights[head, q, k])
                by_distance[q - k] += float(weights[head, q, k])
        for k in range(min(n, policy.sink)):
            by_key[k] = math.inf
        for distance in range(min(n, policy.recent)):
            by_distance[distance] = math.inf
        v, s = min(n, max(policy.vertical, policy.min_vertical)), min(n, max(policy.slash, policy.min_slash))
        columns = sorted(range(n), key=lambda k, by=by_key: -by[k])[:v]  # type: ignore[misc]
        slashes = sorted(range(n), key=lambda d, by=by_distance: -by[d])[:s]  # type: ignore[misc]
        for q in range(n):
            for k in columns:
                mask[head, q, k] = k <= q
            for distance in slashes:
                if policy.tile:
                    first = q // policy.tile * policy.tile - distance
                    for k in range(max(0, first), min(q, first + policy.tile - 1) + 1):
                        mask[head, q, k] = True
                elif distance <= q:
                    mask[head, q, q - distance] = True
    return mask[None]


@pytest.mark.parametrize("length", [9, 63, 70])
@pytest.mark.parametrize("tile", [0, 16])
def test_vertical_slash_is_the_formula_of_the_paper(length: int, tile: int) -> None:
    policy = VerticalSlash(5, 9, last_q=20, sink=2, recent=3, min_vertical=1, min_slash=1, tile=tile)
    call = make_call(length, heads=3, kv_heads=1)
    assert torch.equal(kept(policy.select(call, Memory()), call), vertical_slash_in_loops(call, policy))


def test_vertical_slash_leaves_decode_dense_unless_told() -> None:
    assert isinstance(chosen("vertical_slash(vertical=3,slash=3)", make_call(300, q_len=1)), Everything)
    assert not isinstance(chosen("vertical_slash(phase=both)", make_call(300, q_len=1)), Everything)


def test_oracle_topk_keeps_the_largest_weights_of_each_row() -> None:
    call = make_call(60)
    weights = exact(call, torch.ones(1, 1, 60, 60, dtype=torch.bool)).weights
    for k in (1, 7, 40):
        mask = kept(OracleTopK(k).select(call, Memory()), call)
        assert torch.equal(mask.sum(-1), torch.arange(1, 61).clamp(max=k).expand(1, 6, -1))
        assert difference((weights * mask).sum(-1), weights.topk(k).values.sum(-1)) < 1e-9


def test_oracle_mass_recalls_the_most_at_its_density() -> None:
    call = make_call(60)
    weights = exact(call, torch.ones(1, 1, 60, 60, dtype=torch.bool)).weights
    mask = kept(OracleMass(density=0.15).select(call, Memory()), call)
    budget = int(0.15 * 6 * 60 * 61 / 2)
    forced = int((mask.sum(-1) == 1).sum())  # rows that may live on their largest key alone
    assert 0 <= int(mask.sum()) - budget + 1 <= forced + 1
    best = weights.flatten().topk(int(mask.sum())).values.sum()
    recalled = (weights * mask).sum()
    assert float(recalled) <= float(best) + 1e-9
    assert float(recalled) >= 0.999 * float(weights.flatten().topk(budget).values.sum())


@pytest.mark.parametrize("sinks", [False, True])
def test_oracle_mass_reaches_the_mass_asked_for_with_no_key_to_spare(sinks: bool) -> None:
    call = make_call(60, sinks=sinks)
    weights = exact(call, torch.ones(1, 1, 60, 60, dtype=torch.bool)).weights
    asked = 0.8
    mask = kept(OracleMass(mass=asked).select(call, Memory()), call)
    total = float((weights * mask).sum())
    assert asked <= total / 360 < asked + 1e-3
    forced = weights.amax(-1, keepdim=True)  # a row's largest key may lie below the threshold
    smallest = float(weights[mask & (weights < forced)].min())
    below = float(forced[forced < smallest].sum())
    assert total - smallest - below < asked * 360 + 1e-4


def test_random_has_the_density_it_declares() -> None:
    call = make_call(256)
    for density in (0.05, 0.3, 0.8):
        found = Random(density).select(call, Memory()).density(call)
        expected = sum(max(1.0, density * (q + 1)) for q in range(256)) / (256 * 257 / 2)
        deviation = math.sqrt(density * (1 - density) / (256 * 257 / 2))
        assert bool((found - expected).abs().max() < 5 * deviation)
    tiles = [Random(0.4, "block", seed, 16).select(call, Memory()).tiles(call, 16).some for seed in range(20)]
    expected = sum(max(1.0, 0.4 * (row + 1)) for row in range(16)) / 136
    share = torch.stack([tile.float().sum((-1, -2)).mean() / 136 for tile in tiles]).mean()
    assert float(share) == pytest.approx(expected, abs=5 * math.sqrt(0.24 / (136 * 120)))


def test_random_draws_differ_by_seed_layer_and_head_and_repeat_otherwise() -> None:
    def mask(policy: Policy, layer: int = 0) -> Tensor:
        call = make_call(64, layer=layer)
        return kept(policy.select(call, Memory()), call)

    first = mask(Random(0.3))
    assert torch.equal(first, mask(Random(0.3)))
    for other in (mask(Random(0.3, seed=1)), mask(Random(0.3), layer=1), first.roll(1, 1)):
        agree = float((first == other).float().tril().sum() / (6 * 64 * 65 / 2))
        assert abs(agree - 0.58) < 0.05  # 0.3² + 0.7², as for independent draws


def test_random_keeps_the_diagonal() -> None:
    call = make_call(64)
    for text in ("random(density=0.01)", "random(density=0.01,granularity=block,block=16)"):
        assert kept(chosen(text, call), call).diagonal(dim1=-2, dim2=-1).all()
