"""A row must never be empty: the diagonal, where chosen blocks would leave a row of the block without a key."""

from __future__ import annotations

import torch
from torch import Tensor

from sparselens.kernels.parts.block import Blocks


def grounded(blocks: Blocks, kept: Tensor) -> Tensor:
    """Return a block map with the diagonal blocks added to those query blocks that could hold an empty row.

    `kept` bool `[heads or 1, n_q, n_k]`. A kept key block gives every row of a query block a key if it begins no later
    than that block does, and its end lies in the model's window of the last row. Nothing is added where there is one.
    With blocks of one size and no window of the model that is everywhere, unless nothing at all is kept.
    """
    device = kept.device
    first = torch.arange(blocks.first, blocks.first + blocks.n_q, device=device)[:, None] * blocks.block_q
    begin = torch.arange(blocks.n_k, device=device) * blocks.block_k
    safe = (begin <= first) & blocks.reach
    allowed = blocks.call.allowed
    if allowed.window is not None:
        last = (first + blocks.block_q).clamp(max=int(blocks.call.query_positions[0, -1]) + 1) - 1
        safe &= last - (begin + blocks.block_k - 1) < allowed.window
    if allowed.extra is not None:
        safe = torch.zeros_like(safe)
    return kept | (blocks.diagonal & ~(kept & safe).any(-1, keepdim=True))
