"""Gradients through any kernel: its own forward pass, and a row-blocked backward pass over the kept keys.

The selection is a constant in gradients. Nothing of size `q_len * k_len` is held: weights are recomputed from
the scores and the forward's log-sum-exp, a block of queries at a time (as FlashAttention's backward does,
arXiv:2205.14135).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.kernel import Attended, Kernel
from sparselens.kernels.selection import Selection
from sparselens.kernels.statistics import Want


def needs_gradient(call: AttentionCall) -> bool:
    """Tell whether somebody will ask for gradients through this call."""
    tensors = (call.query, call.key, call.value)
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def attend_with_gradient(kernel: Kernel, call: AttentionCall, selection: Selection, want: Want) -> Attended:
    """Attend with `kernel`; the output carries gradients to query, key and value. Statistics carry none."""
    box: list[Attended] = []
    apply: Any = _Attention.apply
    output = apply(call.query, call.key, call.value, kernel, call, selection, want, box)
    return Attended(output, box[0].lse, box[0].statistics)


class _Attention(torch.autograd.Function):
    """The kernel's forward; backward by recomputation."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
        kernel, call, selection, want, box = rest
        attended = kernel.attend(call, selection, want)
        box.append(attended)
        ctx.save_for_backward(query, key, value, attended.output, attended.lse)
        ctx.call, ctx.selection = call, selection
        output: Tensor = attended.output
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        inputs = (query, key, value)
        return (*_backward(ctx.call, ctx.selection, inputs, output, lse, gradients[0]), *(None,) * 5)


def _backward(
    call: AttentionCall,
    selection: Selection,
    tensors: tuple[Tensor, Tensor, Tensor],
    output: Tensor,
    lse: Tensor,
    gradient: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value, in their types."""
    kind = call.accumulate
    query, key, value = (tensor.to(kind) for tensor in tensors)
    key_t, value_t = key.transpose(-1, -2), value.transpose(-1, -2)
    d_query, d_key, d_value = (torch.zeros_like(tensor) for tensor in (query, key, value))
    for start, stop in call.row_blocks():
        shape = (call.batch, call.kv_heads, -1, call.k_len)
        scores = call.scores(start, stop).masked_fill_(~selection.rows(call, start, stop), -torch.inf)
        bias = selection.bias_rows(call, start, stop)
        whole = scores if bias is None else scores + bias
        weights = torch.exp(whole - lse[:, :, start:stop, None].to(kind).nan_to_num(neginf=0.0))
        d_output = gradient[:, :, start:stop].to(kind)
        inner = (d_output * output[:, :, start:stop].to(kind)).sum(-1)
        folded = d_output.reshape(call.batch, call.kv_heads, -1, d_output.shape[-1])
        d_weights = (folded @ value_t).view(scores.shape)
        d_scores = weights * (d_weights - inner[..., None])
        if call.softcap is not None:
            d_scores = d_scores * (1 - (scores.nan_to_num(neginf=0.0) / call.softcap).square())
        d_scores = (d_scores * call.scale).view(shape)
        d_value += weights.view(shape).transpose(-1, -2) @ folded
        rows = query[:, :, start:stop].reshape(call.batch, call.kv_heads, -1, call.head_dim)
        d_key += d_scores.transpose(-1, -2) @ rows
        d_query[:, :, start:stop] = (d_scores @ key_t.transpose(-1, -2)).view_as(d_query[:, :, start:stop])
    return d_query.to(tensors[0].dtype), d_key.to(tensors[1].dtype), d_value.to(tensors[2].dtype)
