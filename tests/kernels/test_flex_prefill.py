"""FlexPrefill: coverage budgets for columns and diagonals, and the test that makes a head query-aware."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.policies.flex_prefill import FlexPrefill, _divergence
from sparselens.kernels.policy import parse
from sparselens.kernels.selection import Everything

from .block_loops import head_tensors, mean_rows, order, softmax, spread
from .conftest import exact, make_call
from .policy_case import chosen, mask_of


def probe(policy: FlexPrefill, call: AttentionCall, head: int) -> tuple[list[float], list[float]]:
    """Mean weight of each key over the last rows, and of each diagonal, by the key the last row reads on it."""
    n = call.q_len
    weights = exact(call, torch.ones(1, 1, n, n, dtype=torch.bool)).weights[0, head]
    rows = min(policy.block, n)
    columns, diagonals = [0.0] * n, [0.0] * n
    for q in range(n - rows, n):
        for k in range(q + 1):
            columns[k] += float(weights[q, k]) / rows
            diagonals[n - 1 - (q - k)] += float(weights[q, k]) / rows
    return columns, diagonals


def covering(values: list[float], gamma: float) -> int:
    """count(cumulative ≤ gamma) + 1, of values in descending order; all where gamma is never exceeded."""
    total, count = 0.0, 0
    for place in order(values):
        total += values[place]
        count += total <= gamma * sum(values)
    return min(count + 1, len(values))


def pooled(values: list[float], block: int) -> list[float]:
    return [sum(values[start : start + block]) for start in range(0, len(values), block)]


def distance(p: list[float], q: list[float]) -> float:
    """The root of the Jensen-Shannon divergence in nats, 0 log 0 = 0."""
    total = 0.0
    for a, b in zip(p, q, strict=True):
        for x in (a, b):
            total += 0.5 * x * math.log(x / ((a + b) / 2)) if x > 0 else 0.0
    return math.sqrt(max(0.0, total))


def in_loops(policy: FlexPrefill, call: AttentionCall) -> Tensor:
    n, block = call.q_len, policy.block
    blocks = -(-n // block)
    low = math.ceil(policy.min_budget / block)
    high = blocks if policy.max_budget is None else min(blocks, math.ceil(policy.max_budget / block))
    masks = []
    for head in range(call.heads):
        query, key = head_tensors(call, head)
        columns, diagonals = probe(policy, call, head)
        budgets = [min(high, max(low, covering(x, policy.gamma) // block + 1)) for x in (columns, diagonals)]
        by_column, by_diagonal = pooled(columns, block), pooled(diagonals, block)
        keys = mean_rows(key, block)
        last = sum(query[-block:]) / min(block, n)
        guess = softmax([float(last @ mean) * call.scale for mean in keys])
        aware = distance(guess, by_column) < policy.tau
        if aware:
            budgets = [low, low]
        by_column[0] = by_diagonal[-1] = math.inf
        kept = {(i, j) for i in range(blocks) for j in order(by_column)[: budgets[0]]}
        for place in order(by_diagonal)[: budgets[1]]:
            offset = blocks - 1 - place
            kept |= {(i, i - offset) for i in range(offset, blocks)}
        if aware:
            kept |= global_blocks(policy, call, mean_rows(query, block), keys)
        masks.append(spread(kept, n, block))
    return torch.stack(masks)[None]


def global_blocks(
    policy: FlexPrefill, call: AttentionCall, queries: list[Tensor], keys: list[Tensor]
) -> set[tuple[int, int]]:
    """All rows' pooled softmax in one list, kept while the sum stays within gamma times the number of rows."""
    cells = {}
    for i, query in enumerate(queries):
        for j, weight in enumerate(softmax([float(query @ key) * call.scale for key in keys[: i + 1]])):
            cells[i, j] = weight
    total, kept = 0.0, set()
    for cell in sorted(cells, key=lambda cell: (-cells[cell], cell)):
        total += cells[cell]
        if total <= policy.gamma * len(queries):
            kept.add(cell)
    return kept


@pytest.mark.parametrize("length", [9, 16, 63, 80])
@pytest.mark.parametrize("tau", [0.0, 0.12, 1.0])
@pytest.mark.parametrize(("gamma", "low", "high"), [(0.5, 8, None), (0.8, 16, 24), (0.9, 1, None)])
def test_the_mask_is_the_formula(length: int, tau: float, gamma: float, low: int, high: int | None) -> None:
    call = make_call(length, dtype=torch.float64)
    policy = FlexPrefill(gamma, tau, low, high, 8)
    assert torch.equal(mask_of(str(policy), call), in_loops(policy, call))


def test_the_threshold_in_the_middle_tells_heads_apart() -> None:
    """Otherwise the case above with tau 0.12 would not test the choice."""
    call = make_call(63, dtype=torch.float64)
    differ = [
        (
            mask_of(str(FlexPrefill(0.5, tau, 8, None, 8)), call)
            != mask_of(str(FlexPrefill(0.5, 0.12, 8, None, 8)), call)
        )
        .flatten(2)
        .any(-1)
        .sum()
        for tau in (0.0, 1.0)
    ]
    assert all(0 < int(count) < 6 for count in differ)


def test_zeros_do_not_make_the_divergence_nan() -> None:
    """p log(p / m) is NaN at p = 0 in float arithmetic, and NaN < tau is False: the head would never be query-aware."""
    p, q = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.5, 0.5, 0.0]])
    mean = (p + q) / 2
    assert bool((p * torch.log(p / mean)).sum().isnan())
    assert float(_divergence(p, q).sqrt()) == pytest.approx(distance([1.0, 0, 0], [0.5, 0.5, 0]), abs=1e-12)
    assert float(_divergence(p, p)) == 0


def test_a_head_whose_weights_underflow_can_be_query_aware() -> None:
    call = make_call(40, heads=1, kv_heads=1)
    call.query[:], call.key[:] = 20.0, -20.0
    call.key[:, :, 8:16] = 20.0  # every other weight is exactly 0 in float32
    aware, not_aware = (
        mask_of(f"flex_prefill(gamma=0.9,tau={tau},min_budget=8,block=8)", call) for tau in (0.1, 0.0)
    )
    assert not torch.equal(aware, not_aware)
    # 4 of the 5 rows' weights of 1 stay within 0.9 * 5; the vertical-slash branch keeps the column in every row
    assert not bool(aware[0, 0, 39, 8:16].any())
    assert bool(not_aware[0, 0, 39, 8:16].all())


def test_a_diagonal_of_blocks_is_one_block_a_row() -> None:
    """A distance of 12 with blocks of 8 lies in two block diagonals; FlexPrefill keeps one of them."""
    call = make_call(64, heads=1, kv_heads=1, head_dim=64)
    call.query.zero_(), call.key.zero_()
    eye = torch.eye(64) * 30
    call.key[0, 0] = eye
    call.query[0, 0, 12:] = eye[:-12]
    mask = mask_of("flex_prefill(gamma=0.5,tau=0.0,min_budget=16,block=8)", call)[0, 0]
    lower = [mask[i * 8 + 7].view(8, 8).any(-1) for i in range(8)]
    for i in range(3, 6):
        assert lower[i].nonzero()[:, 0].tolist() == [0, i - 1, i]


def test_rows_of_all_blocks_share_the_budget_of_a_query_aware_head() -> None:
    """Diffuse rows lose blocks to peaked ones: the first block's row of weight 1 always comes first."""
    call = make_call(64, heads=1, kv_heads=1)
    call.query.zero_()
    mask = mask_of("flex_prefill(gamma=0.3,tau=1.0,min_budget=1,block=8)", call)[0, 0]
    # uniform rows: 1 + 1/2 + 1/2 = 2 <= 2.4 < 2 + 1/3, so the third row and all later ones add nothing of their own
    blocks = mask.view(8, 8, 8, 8).any(3).any(1)
    assert blocks.tolist() == (torch.eye(8, dtype=torch.bool) | (torch.arange(8) == 0)).tril().tolist()


def test_a_wider_budget_is_monotone_and_reaches_everything() -> None:
    call = make_call(80)
    for tau in (0.0, 1.0):
        policy = FlexPrefill(0.5, tau, 8, 16, 8)
        kept = [mask_of(str(policy.wider(factor)), call) for factor in (0.2, 1, 2, 4, 10)]
        assert all(not (few & ~many).any() for few, many in pairwise(kept))
        assert int(kept[-1].sum()) == 6 * 80 * 81 // 2
        assert int(kept[0].sum()) < int(kept[1].sum())


def test_a_later_chunk_estimates_from_its_own_last_rows() -> None:
    whole = make_call(64, dtype=torch.float64)
    chunk = replace(whole.sequence(0, torch.arange(32, 64), torch.arange(64)), phase="prefill")
    text = "flex_prefill(gamma=0.6,tau=0.0,min_budget=8,block=8)"
    assert torch.equal(mask_of(text, whole)[:, :, 32:], mask_of(text, chunk))


def test_it_leaves_decode_dense() -> None:
    assert isinstance(chosen("flex_prefill", make_call(3000, q_len=1)), Everything)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gamma=1.5", "gamma lies in 0 … 1"),
        ("tau=-0.1", "tau lies in 0 … 1"),
        ("min_budget=0", "min_budget is 1 token or more"),
        ("min_budget=512,max_budget=256", "max_budget is min_budget or more"),
        ("block=0", "block is 1 or more"),
    ],
)
def test_bad_fields_are_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse(f"flex_prefill({text})")
