"""XAttention: antidiagonals inside tiles, a temperature, and a share of the row that the forced blocks count in."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.parts.antidiagonal import antidiagonal_mass
from sparselens.kernels.parts.block import Blocks
from sparselens.kernels.policies.x_attention import XAttention
from sparselens.kernels.policy import parse
from sparselens.kernels.selection import Everything

from .block_loops import head_tensors, order, softmax, spread
from .conftest import make_call
from .policy_case import chosen, mask_of


def masses(
    policy: XAttention, call: AttentionCall, head: int, temperature: float | None = None
) -> list[list[float]]:
    """The mass of each block by the paper's estimate, in loops over tiles and their antidiagonals."""
    n, stride, per_block = call.q_len, policy.stride, policy.block // policy.stride
    query, key = head_tensors(call, head)
    tiles = -(-n // stride)
    mass = [[0.0] * -(-n // policy.block) for _ in range(-(-n // policy.block))]
    divide = math.sqrt(call.head_dim) * stride * policy.norm if temperature is None else temperature
    for row in range(tiles):
        scores = []
        for column in range(row + 1):
            total = 0.0
            for t in range(stride):
                q, k = row * stride + stride - 1 - t, column * stride + t
                total += float(query[q] @ key[k]) if q < n and k < n else 0.0
            scores.append(total / divide)
        for column, weight in enumerate(softmax(scores)):
            mass[row // per_block][column // per_block] += weight
    return mass


def in_loops(policy: XAttention, call: AttentionCall) -> Tensor:
    """The authors' rule: forced first, then by mass while what is kept already does not reach the threshold."""
    masks = []
    for head in range(call.heads):
        kept = set()
        for i, row in enumerate(masses(policy, call, head)):
            held = {0, i}
            reached = sum(row[j] for j in held)
            for j in order(row):
                if j not in held and j <= i and reached < policy.threshold * sum(row):
                    held.add(j)
                    reached += row[j]
            kept |= {(i, j) for j in held}
        masks.append(spread(kept, call.q_len, policy.block))
    return torch.stack(masks)[None]


@pytest.mark.parametrize("length", [1, 7, 63, 80])
@pytest.mark.parametrize(
    "policy", [XAttention(0.6, 4, 1.0, 8), XAttention(0.8, 2, 1.5, 16), XAttention(0.5, 8, 1.0, 8)]
)
def test_the_mask_is_the_formula(policy: XAttention, length: int) -> None:
    call = make_call(length, dtype=torch.float64, sharp=6.0)
    assert torch.equal(mask_of(str(policy), call), in_loops(policy, call))


def test_the_mass_of_a_row_is_the_number_of_its_query_tiles() -> None:
    call = make_call(77, dtype=torch.float64)
    mass = antidiagonal_mass(Blocks.of(call, 16), 4)
    assert mass.sum(-1)[0].tolist() == pytest.approx([4, 4, 4, 4, 4])
    expected = torch.tensor(masses(XAttention(stride=4, block=16), call, 3), dtype=torch.float64)
    assert torch.allclose(mass[3], expected, atol=1e-12)


def test_the_stride_in_the_softmax_is_a_temperature_that_changes_the_masses() -> None:
    call, policy = make_call(64, dtype=torch.float64, sharp=6.0), XAttention(stride=4, block=16)
    found = antidiagonal_mass(Blocks.of(call, 16), 4)[0]
    without = torch.tensor(masses(policy, call, 0, math.sqrt(call.head_dim)), dtype=torch.float64)
    assert (found - without).abs().max() > 0.1
    assert float(antidiagonal_mass(Blocks.of(call, 16), 4, 0.25)[0].sub(without).abs().max()) < 1e-9


def test_antidiagonals_are_scored_not_diagonals() -> None:
    """Query 0 of a tile matches key 3 of another: on its antidiagonal. Forward order would not see it."""
    call = make_call(32, heads=1, kv_heads=1, head_dim=4)
    call.query.zero_(), call.key.zero_()
    call.query[0, 0, 24::4] = torch.tensor([40.0, 0, 0, 0])
    call.key[0, 0, 11] = torch.tensor([1.0, 0, 0, 0])  # last key of tile 2, in block 1
    mask = mask_of("x_attention(threshold=0.9,stride=4,block=8)", call)[0, 0]
    assert bool(mask[24:, 8:16].all())
    assert not mask[24:, 16:24].any()


def test_forced_blocks_that_hold_the_threshold_stay_alone() -> None:
    call = make_call(40, heads=1, kv_heads=1)
    call.query[:], call.key[:] = 1.0, 0.0
    call.key[:, :, :8] = 30.0
    mask = mask_of("x_attention(threshold=0.9,stride=4,block=8)", call)[0, 0]
    for block in range(1, 5):
        rows = mask[block * 8 + 7]
        assert rows.view(-1, 8).any(-1).nonzero()[:, 0].tolist() == [0, block]


def test_the_block_that_crosses_the_threshold_is_kept() -> None:
    """Five blocks of equal mass and the first two forced: 3 of 5 reach 0.6 exactly, and 0.61 takes a fourth."""
    call = make_call(40, heads=1, kv_heads=1)
    call.query.zero_()
    last = [
        int(
            mask_of(f"x_attention(threshold={share},stride=8,block=8)", call)[0, 0, 39]
            .view(5, 8)
            .any(-1)
            .sum()
        )
        for share in (0.3, 0.41, 0.59, 0.61, 0.99, 1.0)
    ]
    assert last == [2, 3, 3, 4, 5, 5]


def test_a_wider_threshold_is_monotone_and_reaches_everything() -> None:
    call, policy = make_call(80, sharp=6.0), XAttention(0.6, 4, 1.0, 8)
    kept = [mask_of(str(policy.wider(factor)), call) for factor in (0.1, 0.5, 1, 3, 20, 1e18)]
    assert all(not (few & ~many).any() for few, many in pairwise(kept))
    assert int(kept[-1].sum()) == 6 * 80 * 81 // 2
    assert policy.wider(1).threshold == pytest.approx(0.6)  # type: ignore[attr-defined]


def test_a_later_chunk_chooses_as_in_the_whole_prompt() -> None:
    whole = make_call(64, dtype=torch.float64, sharp=6.0)
    chunk = replace(whole.sequence(0, torch.arange(32, 64), torch.arange(64)), phase="prefill")
    text = "x_attention(threshold=0.6,stride=4,block=16)"
    assert torch.equal(mask_of(text, whole)[:, :, 32:], mask_of(text, chunk))


def test_it_leaves_decode_dense() -> None:
    assert isinstance(chosen("x_attention(threshold=0.1)", make_call(300, q_len=1)), Everything)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("threshold=1.2", "threshold lies in 0 … 1"),
        ("norm=0.0", "norm is positive"),
        ("stride=3", "stride divides block"),
        ("stride=0", "stride divides block"),
    ],
)
def test_bad_fields_are_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse(f"x_attention({text})")
