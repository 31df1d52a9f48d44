"""What a head writes: the output projection of an attention layer, split by head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_NAMES = ("o_proj", "c_proj", "out_proj", "dense")


@dataclass(frozen=True, eq=False)
class OutputProjection:
    """W_O of one layer by head.

    `weight [heads, head_dim, d_model]`; `gram [heads, head_dim, head_dim]` = W_O^h (W_O^h)ᵀ, so that
    ‖W_O^h z‖² = zᵀ gram z without writing into the residual stream.
    """

    weight: Tensor
    gram: Tensor

    @classmethod
    def of(cls, module: Any, heads: int) -> OutputProjection:
        """Return the projection of an HF attention module (bridged or not); raises `NotImplementedError` if unknown."""
        linear = output_linear(module)
        weight = linear.weight.detach().float()
        if type(linear).__name__ != "Conv1D":  # Conv1D (GPT-2) holds [in, out] already
            weight = weight.T
        by_head = weight.reshape(heads, -1, weight.shape[-1])
        return cls(by_head, by_head @ by_head.transpose(1, 2))

    def norm(self, z: Tensor) -> Tensor:
        """Return ‖W_O^h z‖ `[heads, rows]` of per-head outputs `z [heads, rows, head_dim]`."""
        return self.inner(z, z).clamp_min(0).sqrt()

    def inner(self, left: Tensor, right: Tensor) -> Tensor:
        """Return ⟨W_O^h left, W_O^h right⟩ `[heads, rows]`."""
        return ((left.float() @ self.gram) * right.float()).sum(-1)


def output_linear(module: Any) -> Any:
    """Return the plain linear layer that maps the heads' outputs to the residual stream."""
    for name in _NAMES:
        linear = getattr(module, name, None)
        if linear is not None:
            return getattr(linear, "original_component", None) or linear
    raise NotImplementedError(f"{type(module).__name__} has no output projection among {', '.join(_NAMES)}")


def residual_norm(hidden: Tensor) -> Tensor:
    """Return ‖hidden‖ over the model dimension in float32: `[..., d_model] -> [...]`."""
    norm: Tensor = torch.linalg.vector_norm(hidden, dim=-1, dtype=torch.float32)
    return norm
