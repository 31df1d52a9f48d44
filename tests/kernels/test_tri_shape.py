"""The Tri-shape is an A-shape whose last rows are dense."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.policies.tri_shape import TriShape
from sparselens.kernels.policy import parse
from sparselens.kernels.selection import Everything

from .conftest import make_call
from .policy_case import chosen, mask_of


def in_loops(policy: TriShape, length: int) -> Tensor:
    mask = torch.zeros(length, length, dtype=torch.bool)
    for q in range(length):
        for k in range(q + 1):
            mask[q, k] = k < policy.sink or q - k < policy.window or q >= length - policy.last
    return mask


@pytest.mark.parametrize("length", [1, 5, 12, 63, 80])
@pytest.mark.parametrize(
    "policy", [TriShape(3, 9, 7), TriShape(0, 1, 1), TriShape(2, 5, 0), TriShape(1, 2, 90)]
)
def test_the_mask_is_the_formula(policy: TriShape, length: int) -> None:
    mask = mask_of(str(policy), make_call(length))
    assert bool((mask == in_loops(policy, length)).all())


def test_without_last_rows_it_is_the_a_shape() -> None:
    call = make_call(70)
    assert torch.equal(
        mask_of("tri_shape(sink=3,window=9,last=0)", call), mask_of("a_shape(sink=3,window=9)", call)
    )


def test_the_last_rows_of_each_padded_sequence_are_its_own() -> None:
    call = make_call(60, pads=[(0, 0), (25, 0), (0, 30)])
    mask = mask_of("tri_shape(sink=1,window=4,last=6)", call)
    for row, queries, keys, one in call.sequences():
        expected = in_loops(TriShape(1, 4, 6), one.q_len)
        assert bool((mask[row][:, queries][:, :, keys] == expected).all())


def test_a_later_chunk_of_a_prompt_has_last_rows_of_its_own() -> None:
    whole = make_call(60)
    chunk = whole.sequence(0, torch.arange(40, 60), torch.arange(60))
    mask = mask_of("tri_shape(sink=2,window=5,last=8)", chunk)
    assert bool((mask == in_loops(TriShape(2, 5, 8), 60)[40:]).all())


def test_decode_is_dense_by_default_and_a_last_row_when_told() -> None:
    one: AttentionCall = make_call(50, q_len=1)
    assert isinstance(chosen("tri_shape(sink=1,window=2,last=3)", one), Everything)
    assert bool(mask_of("tri_shape(sink=1,window=2,last=3,phase=both)", one).all())


def test_a_wider_window_reaches_everything() -> None:
    policy = TriShape(0, 3, 1)
    densities = [
        float(chosen(str(policy.wider(factor)), make_call(64)).density(make_call(64))[0, 0])
        for factor in (0.3, 1, 2, 5, 40)
    ]
    assert densities == sorted(densities)
    assert densities[-1] == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [("sink=-1", "sink is 0 or more"), ("window=0", "window is 1 or more"), ("last=-2", "last is 0 or more")],
)
def test_bad_fields_are_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse(f"tri_shape({text})")


def test_fields_are_kept_in_the_call_string() -> None:
    policy = replace(TriShape(), last=64)
    assert parse(str(policy)) == policy
