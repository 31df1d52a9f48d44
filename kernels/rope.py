"""Rotary positions as a model has them: tensors turned to a position, and turned back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rope:
    """How one layer turns queries and keys by their position.

    `cos`, `sin` `[positions, head_dim]` of the positions 0 … seen so far, as the model made them (a scaling of its
    attention included). `apply(tensor, cos, sin)` is the model's own rotation of `[batch, heads, n, head_dim]` by
    `[1, n, head_dim]`.
    """

    cos: Tensor
    sin: Tensor
    apply: Callable[[Tensor, Tensor, Tensor], Tensor]

    def turn(self, tensor: Tensor, positions: Tensor) -> Tensor:
        """Return `[batch, heads, n, head_dim]` as the model turns it at `positions` `[n]`."""
        return self.apply(tensor, self.cos[positions][None], self.sin[positions][None])

    def undo(self, tensor: Tensor, positions: Tensor) -> Tensor:
        """Return what was turned at `positions` `[n]` as it was before."""
        cos, sin = self.cos[positions][None], self.sin[positions][None]
        return self.apply(tensor, cos, -sin) / (cos.square() + sin.square())[:, None]
