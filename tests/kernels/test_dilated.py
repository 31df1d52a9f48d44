"""A dilated window is its formula in loops."""

from __future__ import annotations

import pytest
import torch

from sparselens.kernels.policies.dilated import Dilated

from .conftest import make_call
from .policy_case import mask_of


@pytest.mark.parametrize("length", [50, 3])
def test_it_is_its_formula_in_loops(length: int) -> None:
    mask = mask_of("dilated(window=4,dilation=3)", make_call(length))[0, 0]
    for q in range(length):
        for k in range(length):
            assert bool(mask[q, k]) == any(q - k == 3 * j for j in range(4))


def test_without_dilation_it_is_a_window() -> None:
    call = make_call(50)
    assert torch.equal(
        mask_of("dilated(window=9,dilation=1)", call), mask_of("sliding_window(window=9)", call)
    )


def test_fields_that_cannot_be_raise() -> None:
    for wrong in ({"window": 0}, {"dilation": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Dilated(**wrong)
