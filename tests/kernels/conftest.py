"""Calls of any shape for the kernel tests, and the dumb float64 attention they are compared with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from sparselens.kernels.call import Allowed, AttentionCall
from sparselens.kernels.rope import Rope

# Scores here reach 20: a rounding step of 20 is 1e-6, so weights are off by 1e-6 of themselves, outputs
# (values up to 4, two computations) by at most 8e-6.
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def make_call(
    length: int,
    heads: int = 6,
    kv_heads: int = 2,
    head_dim: int = 16,
    batch: int = 1,
    q_len: int | None = None,
    pads: list[tuple[int, int]] | None = None,
    dtype: torch.dtype = torch.float32,
    window: int | None = None,
    softcap: float | None = None,
    sinks: bool = False,
    extra: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    layer: int = 0,
    sharp: float = 2.0,
) -> AttentionCall:
    """A call with random content; `pads` are (left, right) padding lengths of each sequence."""
    q_len = q_len or length
    batch = len(pads) if pads else batch
    index = torch.arange(length)
    query_index = index[length - q_len :]
    valid = None
    positions = index[None]
    if pads:
        valid = torch.stack([(index >= left) & (index < length - right) for left, right in pads])
        positions = torch.stack([index - left for left, _ in pads]).where(valid, -1)
    return AttentionCall(
        query=(torch.randn(batch, heads, q_len, head_dim) * sharp).to(dtype),
        key=torch.randn(batch, kv_heads, length, head_dim).to(dtype),
        value=torch.randn(batch, kv_heads, length, head_dim).to(dtype),
        query_positions=positions[:, length - q_len :],
        key_positions=positions,
        allowed=Allowed(
            query_index,
            index,
            valid,
            window,
            extra,
            None if valid is None else valid[:, length - q_len :],
        ),
        scale=head_dim**-0.5,
        softcap=softcap,
        sinks=torch.randn(heads) if sinks else None,
        layer=layer,
        phase="decode" if q_len == 1 else "prefill",
        rope=None if pads else toy_rope(length, head_dim),
    )


def toy_rope(length: int, head_dim: int) -> Rope:
    """Rotary positions of a toy model: pairs are channel i and i + head_dim / 2, as in Llama."""
    half = head_dim // 2
    angle = torch.arange(length)[:, None] * 100.0 ** (-torch.arange(half) / half)
    angle = torch.cat([angle, angle], -1)

    def rotate(tensor: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        turned = torch.cat([-tensor[..., half:], tensor[..., :half]], -1)
        return tensor * cos[:, None] + turned * sin[:, None]

    return Rope(angle.cos(), angle.sin(), rotate)


@dataclass
class Exact:
    """Float64 attention over a mask, all at once."""

    output: Tensor
    lse: Tensor
    weights: Tensor


def exact(call: AttentionCall, keep: Tensor) -> Exact:
    """The dumbest attention: full float64 matrices, keep and allowed as masks, sinks as a column."""
    key = call.key.double().repeat_interleave(call.group, 1)
    value = call.value.double().repeat_interleave(call.group, 1)
    scores = call.query.double() @ key.transpose(-1, -2) * call.scale
    if call.softcap is not None:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    seen = keep & call.allowed.rows(0, call.q_len)
    scores = scores.masked_fill(~seen, -math.inf)
    whole = scores
    if call.sinks is not None:
        sink = call.sinks.double()[None, :, None, None].expand(*scores.shape[:3], 1)
        whole = torch.cat([scores, sink], -1)
    empty = ~seen.any(-1, keepdim=True)
    weights = torch.softmax(whole, -1)[..., : call.k_len].masked_fill(empty | ~seen, 0.0)
    lse = torch.logsumexp(whole, -1).masked_fill(empty[..., 0], -math.inf)
    return Exact(weights @ value, lse, weights)


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest absolute difference; infinities must agree."""
    found, expected = found.double(), expected.double()
    assert torch.equal(torch.isinf(found), torch.isinf(expected))
    return float((found - expected).nan_to_num(nan=0.0, posinf=0.0).abs().max()) if found.numel() else 0.0


def random_tiles(length: int, heads: int, block: int, share: float = 0.5) -> Tensor:
    """A random tile map with the diagonal."""
    n = -(-length // block)
    return (torch.rand(1, heads, n, n) < share) | torch.eye(n, dtype=torch.bool)
