"""The patterns of Sparse Transformers are their formulas in loops."""

from __future__ import annotations

import pytest
import torch

from sparselens.kernels.policies.sparse_transformer import SparseTransformer

from .conftest import make_call
from .policy_case import mask_of


@pytest.mark.parametrize("apart", [False, True])
def test_the_strided_pattern_in_loops(apart: bool) -> None:
    mask = mask_of(f"sparse_transformer(stride=7,apart={str(apart).lower()})", make_call(50))[0]
    for head in range(6):
        for q in range(50):
            for k in range(50):
                near, far = q - k < 7, (q - k) % 7 == 0
                kept = (far if head % 2 else near) if apart else near or far
                assert bool(mask[head, q, k]) == (k <= q and kept), (head, q, k)


@pytest.mark.parametrize("apart", [False, True])
def test_the_fixed_pattern_in_loops(apart: bool) -> None:
    text = f"sparse_transformer(stride=8,pattern=fixed,summary=2,turns=3,apart={str(apart).lower()})"
    mask = mask_of(text, make_call(53))[0]
    for head in range(6):
        turn = head % 3
        for q in range(53):
            for k in range(53):
                near = q // 8 == k // 8
                far = q == k or 8 - (turn + 1) * 2 <= k % 8 < 8 - turn * 2
                kept = (far if head % 2 else near) if apart else near or far
                assert bool(mask[head, q, k]) == (k <= q and kept), (head, q, k)


def test_two_layers_of_the_strided_pattern_reach_everything() -> None:
    mask = mask_of("sparse_transformer(stride=7)", make_call(50))[0, 0].double()
    assert torch.equal(mask @ mask > 0, torch.ones(50, 50, dtype=torch.bool).tril())


def test_one_head_keeps_the_near_part_where_parts_are_apart() -> None:
    one = make_call(40, heads=1, kv_heads=1)
    assert torch.equal(
        mask_of("sparse_transformer(stride=7,apart=true)", one), mask_of("sliding_window(window=7)", one)
    )


def test_it_names_no_budget() -> None:
    """A longer stride widens the near part and thins the far one, so there is no wider policy."""
    with pytest.raises(ValueError, match="no budget"):
        SparseTransformer().wider(2.0)


def test_fields_that_cannot_be_raise() -> None:
    for wrong, said in (
        ({"stride": 0}, "stride is 1"),
        ({"pattern": "woven"}, "strided, fixed"),
        ({"turns": 0}, "turns"),
        ({"summary": 0}, "summary"),
        ({"pattern": "fixed", "stride": 8, "summary": 4, "turns": 3}, "at most stride"),
    ):
        with pytest.raises(ValueError, match=said):
            SparseTransformer(**wrong)  # type: ignore[arg-type]
