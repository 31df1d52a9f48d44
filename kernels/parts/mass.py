"""Exact dense attention, reduced to blocks while it is computed."""

from __future__ import annotations

import torch
from torch import Tensor

from sparselens.kernels.parts.block import Blocks


def block_mass(blocks: Blocks) -> Tensor:
    """Return the summed dense weights of every query block in every key block: `[heads, n_q, n_k]`.

    A row adds 1 to its query block, spread over what the model allows.
    """
    call = blocks.call
    mass = torch.zeros(call.heads, blocks.n_q, blocks.n_k, dtype=call.accumulate, device=call.device)
    for start, stop in call.row_blocks():
        rows = blocks.summed_keys(torch.softmax(call.scores(start, stop)[0], -1))
        mass.index_add_(1, blocks.query_block[start:stop], rows)
    return mass
