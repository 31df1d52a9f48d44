"""Gradients through a kernel equal autograd through attention written out under the same mask."""

from __future__ import annotations

import pytest
import torch

from sparselens.kernels.call import Allowed, AttentionCall
from sparselens.kernels.gradient import attend_with_gradient, needs_gradient
from sparselens.kernels.kernel import kernel
from sparselens.kernels.selection import Band, Everything, Selection
from sparselens.kernels.statistics import NOTHING

TOKENS = 23


def make_call(softcap: float | None, dtype: torch.dtype) -> AttentionCall:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, heads, TOKENS, 8, generator=generator, dtype=dtype).requires_grad_()
        for heads in (6, 2, 2)
    )
    index = torch.arange(TOKENS)
    return AttentionCall(
        query, key, value, index[None], index[None], Allowed(index, index), scale=0.4, softcap=softcap
    )


@pytest.mark.parametrize("name", ["reference", "blocked"])
@pytest.mark.parametrize("selection", [Everything(), Band(2, 5)], ids=["dense", "band"])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_gradients_equal_autograd_of_the_formula(
    name: str, selection: Selection, softcap: float | None
) -> None:
    call = make_call(softcap, torch.float64 if name == "reference" else torch.float32)
    direction = torch.randn(
        call.query.shape, generator=torch.Generator().manual_seed(1), dtype=call.query.dtype
    )
    assert needs_gradient(call)
    tensors = (call.query, call.key, call.value)
    output = attend_with_gradient(kernel(name), call, selection, NOTHING).output
    ours = torch.autograd.grad((output * direction).sum(), tensors)

    key, value = (tensor.repeat_interleave(3, dim=1) for tensor in (call.key, call.value))
    scores = call.query @ key.transpose(-1, -2) * call.scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    mask = selection.kept(call, 0, TOKENS)
    written_out = torch.softmax(scores.masked_fill(~mask, -torch.inf), -1) @ value
    expected = torch.autograd.grad((written_out * direction).sum(), tensors)
    for mine, theirs in zip(ours, expected, strict=True):
        step = 200 * torch.finfo(theirs.dtype).eps * float(theirs.abs().max())
        assert (mine - theirs).abs().max() <= step
