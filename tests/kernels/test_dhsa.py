"""DHSA's four released selectors, each told in loops, and what tells them apart."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.policies.dhsa_a import DHSAA
from sparselens.kernels.policies.dhsa_topk import DHSATopK
from sparselens.kernels.policies.dhsa_vs import DHSAVS
from sparselens.kernels.policies.dhsa_vsb import DHSAVSB
from sparselens.kernels.policy import Memory

from .conftest import exact, make_call
from .policy_case import kept

Scores = list[list[float]]


def units(value: float) -> int:
    """In 2⁻³², as the policy sums, so that equal sets tie."""
    return round(value * 2**32)


def count(policy: DHSATopK, n: int) -> int:
    return max(1, int(policy.density * math.ceil(n / policy.block_k)))


def best(scores: dict[int, float], count: int) -> set[int]:
    """The `count` highest; ties to the lower index."""
    return set(sorted(scores, key=lambda i: (-scores[i], i))[: max(0, count)])


def means(tensor: Tensor, size: int) -> list[Tensor]:
    return [tensor[at : at + size].double().mean(0) for at in range(0, len(tensor), size)]


def products(call: AttentionCall, policy: DHSATopK, head: int) -> Scores:
    queries = means(call.query[0, head], policy.block_q)
    keys = means(call.key[0, head // call.group], policy.block_k)
    return [[float(q @ k) for k in keys] for q in queries]


def by_lines(call: AttentionCall, policy: DHSATopK, head: int) -> Scores:
    """Columns and diagonals of the last rows, as blocks."""
    assert isinstance(policy, DHSAVS)
    n, bq, bk = call.k_len, policy.block_q, policy.block_k
    weights = exact(call, torch.ones(1, 1, n, n, dtype=torch.bool)).weights[0, head].tolist()
    rows = range(max(0, n - bq), n)
    columns = {k: sum(weights[q][k] for q in rows) for k in range(n)}
    distances = {d: sum(weights[q][q - d] for q in rows if q >= d) for d in range(n)}
    lines = min(n, count(policy, n) * bk)
    vertical = int(lines * policy.ratio)
    chosen, slashes = best(columns, vertical), best(distances, lines - vertical)
    scores = []
    for begin in range(0, n, bq):
        row = []
        for key in range(0, n, bk):
            touch = [d for d in slashes if any(key <= q - d < key + bk for q in range(begin, begin + bq))]
            total = sum(units(distances[d]) for d in touch) / 2**32
            row.append(total + sum(columns[k] for k in chosen if key <= k < key + bk))
        scores.append(row)
    return scores


def by_block_lines(call: AttentionCall, policy: DHSATopK, head: int) -> Scores:
    """Columns and distances of blocks, from the mean of the last queries."""
    assert isinstance(policy, DHSAVSB)
    n, bq, bk = call.k_len, policy.block_q, policy.block_k
    k = count(policy, n)
    query = call.query[0, head, -bq:].double().mean(0)
    last = {
        b: float(query @ mean) * call.scale
        for b, mean in enumerate(means(call.key[0, head // call.group], bk))
    }
    chosen, slashes = best(last, int(k * policy.ratio)), best(last, k - int(k * policy.ratio))
    scores = []
    for begin in range(0, n, bq):
        own = range(begin // bk, (min(begin + bq, n) - 1) // bk + 1)
        row = []
        for block, value in last.items():
            seen = [b for b in slashes if any(mine - (len(last) - 1 - b) == block for mine in own)]
            row.append(sum(units(last[b]) for b in seen) / 2**32 + (value if block in chosen else 0.0))
        scores.append(row)
    return scores


def dhsa_in_loops(call: AttentionCall, policy: DHSATopK, told: Callable[..., Scores], forced: str) -> Tensor:
    n, bq, bk = call.k_len, policy.block_q, policy.block_k
    blocks, k = math.ceil(n / bk), count(policy, n)
    mask = torch.zeros(1, call.heads, n, n, dtype=torch.bool)
    for head in range(call.heads):
        scores = told(call, policy, head)
        for row, begin in enumerate(range(0, n, bq)):
            newest, oldest = (min(begin + bq, n) - 1) // bk, begin // bk
            diagonal = set(range(oldest, newest + 1))
            if forced == "none":
                keep = best(dict(enumerate(scores[row])), k) | diagonal
            else:
                must = {0, newest} if forced == "newest" else {0} | diagonal
                middle = {b: scores[row][b] for b in range(1, newest)}
                keep = must | best(middle, k - len(must)) | diagonal
                prefix = math.ceil(min(n, k * bk) / bq) if isinstance(policy, DHSAVS) else 0
                last = isinstance(policy, DHSAVS) and begin + bq >= n
                if newest + 1 <= k or row < prefix or last:
                    keep = set(range(blocks))
            for q in range(begin, min(begin + bq, n)):
                for key in range(q + 1):
                    mask[0, head, q, key] = key // bk in keep
    return mask


@pytest.mark.parametrize("length", [128, 115])
@pytest.mark.parametrize("density", [0.25, 0.4])
@pytest.mark.parametrize(
    ("kind", "told", "forced"),
    [
        (DHSATopK, products, "none"),
        (DHSAA, products, "newest"),
        (DHSAVS, by_lines, "newest"),
        (DHSAVSB, by_block_lines, "diagonal"),
    ],
    ids=["topk", "a", "vs", "vsb"],
)
def test_it_is_the_formula_in_loops(
    length: int, density: float, kind: type[DHSATopK], told: Callable[..., Scores], forced: str
) -> None:
    policy = kind(density, block_q=16, block_k=8)
    call = make_call(length, heads=3, kv_heads=1, dtype=torch.float64)
    mask = kept(policy.select(call, Memory()), call)
    assert torch.equal(mask, dhsa_in_loops(call, policy, told, forced))
    assert int(mask.sum()) < 3 * length * (length + 1) // 2


def test_topk_spends_budget_on_the_future_and_a_does_not() -> None:
    call = make_call(128, heads=1, kv_heads=1, dtype=torch.float64)
    call.key[0, 0, 96:] = 5 * call.query[0, 0, :96].mean(
        0
    )  # every early row ranks the last four blocks first
    few = kept(DHSATopK(0.25, block_q=16, block_k=8).select(call, Memory()), call)[0, 0]
    assert int(few[64].sum()) == 1  # the diagonal alone: its four blocks lie in the future
    assert int(kept(DHSAA(0.25, block_q=16, block_k=8).select(call, Memory()), call)[0, 0, 79].sum()) == 40


def test_no_row_loses_its_own_token_where_the_newest_block_is_a_part_of_the_diagonal() -> None:
    call = make_call(256)
    for kind in (DHSATopK, DHSAA, DHSAVS, DHSAVSB):
        mask = kept(kind(0.01, block_q=64, block_k=8).select(call, Memory()), call)
        assert mask.diagonal(dim1=-2, dim2=-1).all()


def test_a_diagonal_moves_with_the_rows_and_a_column_stays() -> None:
    """All weight of the last rows on one column, then on one distance: other rows keep the blocks these touch."""
    call = make_call(128, heads=1, kv_heads=1, head_dim=128, dtype=torch.float64)
    call.query[:], call.key[:] = 0.0, 0.0
    call.query[0, 0, :, 0], call.key[0, 0, 20, 0] = 100.0, 100.0
    mask = kept(DHSAVS(0.2, block_q=8, block_k=8, ratio=1.0).select(call, Memory()), call)[0, 0]
    assert mask[90, 16:24].all()
    call.key[:] = 100 * torch.eye(128, dtype=torch.float64)
    call.query[0, 0] = 100 * torch.eye(128, dtype=torch.float64).roll(-40, 1)  # each query reads 40 back
    mask = kept(DHSAVS(0.2, block_q=8, block_k=8, ratio=0.0).select(call, Memory()), call)[0, 0]
    for q in range(56, 120):
        assert mask[q, q - 40]


def test_bad_fields_are_refused() -> None:
    for kind in (DHSATopK, DHSAVSB):
        for fields in ({"density": 0.0}, {"block_q": 0}, {"block_k": 0}):
            with pytest.raises(ValueError, match=f"{kind.name}: {next(iter(fields))} "):
                kind(**fields)
    with pytest.raises(ValueError, match="dhsa_vs: ratio lies in"):
        DHSAVS(ratio=1.5)
