"""MASFormer: the named layers are dense, all others windowed."""

from __future__ import annotations

import pytest
import torch

from sparselens.kernels.policies.mas_former import MasFormer
from sparselens.kernels.selection import Band, Everything

from .conftest import make_call
from .policy_case import chosen, mask_of


def test_the_named_layers_are_dense_and_the_others_windowed() -> None:
    text = "mas_former(dense=[0,4],window=7,sink=2)"
    for layer in range(6):
        selection = chosen(text, make_call(30, layer=layer))
        assert isinstance(selection, Everything if layer in (0, 4) else Band)
    mask = mask_of(text, make_call(30, layer=1))[0, 0]
    for q in range(30):
        for k in range(30):
            assert bool(mask[q, k]) == (k <= q and (q - k < 7 or k < 2))


def test_no_dense_layer_is_a_window_everywhere() -> None:
    call = make_call(30)
    assert torch.equal(
        mask_of("mas_former(dense=[],window=7)", call), mask_of("sliding_window(window=7)", call)
    )


def test_fields_that_cannot_be_raise() -> None:
    with pytest.raises(ValueError, match="layers count from 0, not -1"):
        MasFormer(dense=(2, -1))
    with pytest.raises(ValueError, match="window"):
        MasFormer(window=0)
    with pytest.raises(ValueError, match="sink"):
        MasFormer(sink=-1)
