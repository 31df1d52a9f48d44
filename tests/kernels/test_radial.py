"""The port of Radial Attention is its formula in loops, and half as dense in each further band."""

from __future__ import annotations

import math

import pytest
import torch

from sparselens.kernels.policies.radial import Radial

from .conftest import make_call
from .policy_case import mask_of


@pytest.mark.parametrize("full", [0, 1])
def test_it_is_its_formula_in_loops(full: int) -> None:
    mask = mask_of(f"radial(block=2,full={full},sink=1)", make_call(79))[0, 0]
    for q in range(79):
        for k in range(79):
            gap, block = q // 2 - k // 2, k // 2
            band = int(math.log2(gap)) if gap > 0 else 0
            expected = k <= q and (block % 2 ** max(0, band - full) == 0 or block < 1)
            assert bool(mask[q, k]) == expected, (q, k)


def test_each_band_is_half_as_dense_as_the_one_before() -> None:
    number = torch.arange(1024)
    kept = Radial(full=2, sink=0).keeps(torch.tensor([[1024]]), number[None])[0]
    gap = 1024 - number
    shares = [float(kept[(gap >= 2**band) & (gap < 2 ** (band + 1))].double().mean()) for band in range(10)]
    assert shares == pytest.approx([1, 1, 1] + [2.0 ** -(band - 2) for band in range(3, 10)])


def test_wide_bands_are_exact_powers() -> None:
    """Bands by exponent, not by a rounded logarithm."""
    policy = Radial(full=0, sink=0)
    for band in (10, 20, 30):
        edge = torch.tensor([[2**band]])
        far, near = torch.tensor([[0]]), torch.tensor([[1]])
        assert bool(policy.keeps(edge, far))
        assert not bool(policy.keeps(edge, near)), band  # distance 2^band - 1: stride 2^(band - 1)


def test_wider_moves_the_reach_of_the_whole_bands() -> None:
    assert [Radial(full=2).wider(factor).full for factor in (0.1, 0.5, 1.0, 4.0, 1024.0)] == [0, 1, 2, 4, 12]


def test_fields_that_cannot_be_raise() -> None:
    for wrong in ({"block": 0}, {"full": -1}, {"sink": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Radial(**wrong)
