"""From one sequence to a batch: the maps and masks of single sequences as one selection."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.parts.block import Blocks
from sparselens.kernels.selection import Bits, Tiles


def tiles_of(call: AttentionCall, block_q: int, block_k: int, choose: Callable[[Blocks], Tensor]) -> Tiles:
    """Return the block maps that `choose` makes for each sequence, as one `Tiles`.

    `choose` gets a sequence's blocks (without padding) and returns bool `[heads or 1, n_q, n_k]`. A sequence without
    a query keeps nothing.
    """
    found = {}
    for row, _, _, one in call.sequences():
        blocks = Blocks.of(one, block_q, block_k)
        found[row] = blocks.first, choose(blocks)
    first = min((start for start, _ in found.values()), default=0)
    high = max((start - first + kept.shape[1] for start, kept in found.values()), default=1)
    wide = max((kept.shape[2] for _, kept in found.values()), default=1)
    heads = max((kept.shape[0] for _, kept in found.values()), default=1)
    whole = torch.zeros(call.batch, heads, high, wide, dtype=torch.bool, device=call.device)
    for row, (start, kept) in found.items():
        at = start - first
        whole[row, :, at : at + kept.shape[1], : kept.shape[2]] = kept
    return Tiles(whole, block_q, block_k, first)


def bits_of(call: AttentionCall, choose: Callable[[AttentionCall], Tensor]) -> Bits:
    """Return the token masks that `choose` makes for each sequence, as one packed mask.

    `choose` gets a call of one sequence without padding and returns bool `[heads or 1, q_len, k_len]`.
    """
    masks = {row: (queries, keys, choose(one)) for row, queries, keys, one in call.sequences()}
    if len(masks) == 1 and call.batch == 1 and masks[0][2].shape[1:] == (call.q_len, call.k_len):
        return Bits.of(masks[0][2][None])
    heads = max((mask.shape[0] for _, _, mask in masks.values()), default=1)
    whole = torch.zeros(call.batch, heads, call.q_len, call.k_len, dtype=torch.bool, device=call.device)
    for row, (queries, keys, mask) in masks.items():
        whole[row, :, queries[:, None], keys] = mask.expand(heads, -1, -1)
    return Bits.of(whole)


def stacked(parts: list[Tensor], value: int = -1) -> Tensor:
    """Return tensors `[heads, n]` of several sequences as `[batch, heads, widest n]`, filled up with `value`."""
    width = max(part.shape[1] for part in parts)
    return torch.stack([pad(part, (0, width - part.shape[1]), value=value) for part in parts])
