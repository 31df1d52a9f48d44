"""SF-Attn is its formula in loops; the shifted halves agree with a roll whose leak is masked."""

from __future__ import annotations

import pytest
import torch

from sparselens.kernels.policies.sf_attention import SfAttention

from .conftest import make_call
from .policy_case import mask_of


@pytest.mark.parametrize(("length", "group"), [(64, 16), (61, 7)])
def test_it_is_its_formula_in_loops(length: int, group: int) -> None:
    mask = mask_of(f"sf_attention(group={group},sink=2)", make_call(length))[0]
    for head in range(6):
        shift = group // 2 if head >= 3 else 0
        for q in range(length):
            for k in range(length):
                same = (q + shift) // group == (k + shift) // group
                assert bool(mask[head, q, k]) == (k <= q and (same or k < 2)), (head, q, k)


def test_groups_are_those_of_a_roll_without_its_leak() -> None:
    """Rolled by half a group and cut, the first half group shares a group with the end, and reads it there."""
    length, group = 64, 16
    mask = mask_of(f"sf_attention(group={group},sink=0)", make_call(length))[0, 5]
    rolled = torch.arange(length).roll(-group // 2)
    leaked = 0
    for block in rolled.view(-1, group):
        for i, q in enumerate(block.tolist()):
            for k in block[: i + 1].tolist():
                assert bool(mask[q, k]) == (k <= q), (q, k)
                leaked += k > q
    assert leaked == (group // 2) ** 2


def test_the_half_that_is_shifted_counts_query_heads_rounded_down() -> None:
    mask = mask_of("sf_attention(group=10,sink=0)", make_call(40, heads=3, kv_heads=3))[0]
    assert not torch.equal(mask[0], mask[1])
    assert torch.equal(mask[1], mask[2])


def test_fields_that_cannot_be_raise() -> None:
    for wrong in ({"group": 0}, {"sink": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SfAttention(**wrong)
