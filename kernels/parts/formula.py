"""Block maps that positions alone decide: one map for all sequences of a batch, since blocks are absolute."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.selection import Tiles


def formula_tiles(call: AttentionCall, block: int, keeps: Callable[[Tensor, Tensor], Tensor]) -> Tiles:
    """Return the blocks that `keeps` says, `block` queries by `block` keys.

    `keeps` gets the numbers of query blocks `[n_q, 1]` and key blocks `[1, n_k]`, counted in absolute positions, and
    returns bool `[n_q, n_k]`, or `[heads, n_q, n_k]` where heads differ. Blocks in the future need not be left out.
    """
    query = call.query_positions[call.query_positions >= 0] // block
    first, last = int(query.min()), int(query.max())
    rows = torch.arange(first, last + 1, device=call.device)[:, None]
    columns = torch.arange(int(call.key_positions.max()) // block + 1, device=call.device)[None]
    kept = keeps(rows, columns)
    return Tiles(kept[None] if kept.dim() == 3 else kept[None, None], block, block, first)
