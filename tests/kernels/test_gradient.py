"""Gradients through a kernel are those of autograd over the same mask."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sparselens.kernels.gradient import attend_with_gradient, needs_gradient
from sparselens.kernels.kernel import kernel
from sparselens.kernels.selection import Band, Bits, Everything, Selection
from sparselens.kernels.statistics import NOTHING

from .conftest import difference, exact, make_call


@pytest.mark.parametrize("name", ["reference", "blocked"])
@pytest.mark.parametrize(
    "options", [{}, {"softcap": 4.0}, {"sinks": True}, {"window": 20}, {"pads": [(0, 0), (9, 4)]}]
)
def test_gradients_equal_autograd(name: str, options: dict[str, object]) -> None:
    call = make_call(70, **options)  # type: ignore[arg-type]
    mask = torch.rand(1, 6, 70, 70) < 0.4
    mask[..., 3, :] = False
    selections: list[Selection] = [Everything(), Band(2, 9), Bits.of(mask)]
    upstream = torch.randn_like(call.query)
    for selection in selections:
        keep = selection.rows(call, 0, 70)
        expected, found = [
            [tensor.clone().requires_grad_() for tensor in (call.query, call.key, call.value)]
            for _ in range(2)
        ]
        whole = replace(call, query=expected[0], key=expected[1], value=expected[2])
        (exact(whole, keep).output.nan_to_num() * upstream).sum().backward()
        asked = replace(call, query=found[0], key=found[1], value=found[2])
        assert needs_gradient(asked)
        (attend_with_gradient(kernel(name), asked, selection, NOTHING).output * upstream).sum().backward()
        for a, b in zip(found, expected, strict=True):
            assert a.grad is not None
            assert b.grad is not None
            assert difference(a.grad, b.grad.nan_to_num()) < 1e-4 * max(
                1.0, float(b.grad.nan_to_num().abs().max())
            )


def test_no_gradient_is_prepared_when_nobody_asks() -> None:
    call = make_call(10)
    assert not needs_gradient(call)
    wanting = replace(call, query=call.query.clone().requires_grad_())
    with torch.no_grad():
        assert not needs_gradient(wanting)
