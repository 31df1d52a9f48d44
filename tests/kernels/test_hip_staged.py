"""HiP's staged search is the one of version 1.2, told in loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.parts.staged import Stages
from sparselens.kernels.policies.hip import HiP
from sparselens.kernels.policy import Memory, parse

from .conftest import make_call
from .policy_case import kept

STAGED = HiP(
    8, 10, 2, 8, variant="v1.2", chunks=(8, 4, 2), keeps=(24, 12), averaged=(3, 2, 1), together=False
)


def halved(scores: list[float], left: int, chunk: int, limit: int) -> tuple[int, float]:
    """Where a chunk ends up, and the largest score on the way."""
    right, best = min(left + chunk, len(scores)), -math.inf
    if left > limit:
        return left, best
    while right - left > 1:
        middle = (left + right) // 2
        low, high = scores[(left + middle) // 2], scores[(middle + right) // 2]
        best = max(best, low, high)
        left, right = (left, middle) if low > high else (middle, right)
        if left > limit:
            return left, best
    return left, max(best, scores[left])


def staged_in_loops(call: AttentionCall, policy: HiP) -> Tensor:
    n = call.k_len
    mask = torch.zeros(1, call.heads, n, n, dtype=torch.bool)
    for begin in range(0, n, policy.block_q):
        rows = range(begin, min(begin + policy.block_q, n))
        limit = max(0, begin - max(0, policy.window - policy.chunks[0]))
        lefts = [list(range(policy.sink, n - policy.window, policy.chunks[0]))] * call.heads
        for stage, chunk in enumerate(policy.chunks):
            ends = []
            for head in range(call.heads):
                query, key = call.query[0, head].double(), call.key[0, head // call.group].double()
                size = policy.averaged[stage]
                means = [query[q : min(q + size, rows.stop)].mean(0) for q in rows[::size]]
                scores = [
                    max(float(q @ key[k]) for q in means) if k <= begin else -math.inf for k in range(n)
                ]
                ends.append([halved(scores, left, chunk, limit) for left in lefts[head]])
            marks = [[score for _, score in row] for row in ends]
            if policy.together:
                marks = [[max(column) for column in zip(*marks, strict=True)]] * call.heads
            keep = (*policy.keeps, policy.mask_k)[stage] // chunk
            best = [sorted(range(len(row)), key=lambda i, row=row: -row[i])[:keep] for row in marks]  # type: ignore[misc]
            if stage < len(policy.keeps):
                smaller = policy.chunks[stage + 1]
                lefts = [
                    sorted(
                        (ends[head][i][0] - policy.sink) // chunk * chunk + policy.sink + piece
                        for i in best[head]
                        for piece in range(0, chunk, smaller)
                    )
                    for head in range(call.heads)
                ]
        for head in range(call.heads):
            found = {ends[head][i][0] // chunk for i in best[head] if marks[head][i] > -math.inf}
            for q in rows:
                for k in range(q + 1):
                    mask[0, head, q, k] = k < policy.sink or q - k < policy.window or k // chunk in found
    return mask


@pytest.mark.parametrize("length", [80, 71])
@pytest.mark.parametrize("together", [False, True])
def test_version_1_2_is_the_staged_descent_in_loops(length: int, together: bool) -> None:
    policy = STAGED(together=together)
    call = make_call(length, heads=4, kv_heads=2, dtype=torch.float64)
    mask = kept(policy.select(call, Memory()), call)
    assert torch.equal(mask, staged_in_loops(call, policy))
    assert bool((mask == mask[:, :1]).all()) == together
    assert int(mask.sum()) < call.heads * length * (length + 1) // 2


def test_a_chunk_is_judged_by_the_positions_that_its_halving_meets() -> None:
    """In 0 … 7: 2 against 6, then 1 against 3 (or 5 against 7), then the last two."""
    scores = torch.zeros(1, 8)
    scores[0, 0] = 9.0
    search = Stages(0, 8, 8, (8,), (), 8)
    assert search._halved(scores, torch.tensor([[0]]), 8)[1].item() == 0  # a draw goes right, away from it
    scores[0, [1, 2]] = 1.0
    left, best = search._halved(scores, torch.tensor([[0]]), 8)
    assert (left.item(), best.item()) == (0, 9.0)


def test_version_1_2_has_an_exact_window_and_its_sizes_are_checked() -> None:
    call = make_call(80)
    mask = kept(STAGED.select(call, Memory()), call)
    for q in (39, 40, 41):
        assert mask[:, :, q, q - 9 : q + 1].all()
    for fields in (
        {"chunks": (8, 3)},
        {"keeps": (1, 12)},
        {"averaged": (1, 1)},
        {"window": 0},
        {"mask_k": 1},
    ):
        with pytest.raises(ValueError, match=r"hip: "):
            STAGED(**fields)
    assert "v1.2" in str(STAGED)
    assert parse(str(STAGED)) == STAGED
