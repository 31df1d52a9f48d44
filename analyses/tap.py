"""Gradients of a loss with respect to what heads hand on, in one backward pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.selection import Selection


@dataclass(frozen=True, eq=False)
class Tapped:
    """One layer's call, the selection that ran, and its output in the graph `[batch, heads, q_len, head_dim]`."""

    call: AttentionCall
    selection: Selection
    output: Tensor


@dataclass(eq=False)
class Tap:
    """An editor that changes nothing and keeps every layer's output for `torch.autograd.grad`."""

    layers: list[Tapped] = field(default_factory=list)

    def edit(self, call: AttentionCall, selection: Selection, output: Tensor) -> Tensor:
        """Keep the layer."""
        self.layers.append(Tapped(call, selection, output))
        return output

    def gradients(self, loss: Tensor) -> list[Tensor]:
        """Return ∂loss/∂output of every layer, each `[batch, heads, q_len, head_dim]`."""
        return list(torch.autograd.grad(loss, [layer.output for layer in self.layers]))


def embedded(model: Any, ids: Tensor) -> Tensor:
    """Return the token embeddings `[batch, tokens, d_model]` as a leaf that asks for gradients.

    With it as `inputs_embeds` the graph is there whether or not the weights ask for gradients.
    """
    with torch.no_grad():
        found: Tensor = model.get_input_embeddings()(ids)
    return found.detach().requires_grad_()
