"""Selections of another policy's shape: as many keys in each row, or tiles in each block of rows, chosen otherwise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.parts.assemble import tiles_of
from sparselens.kernels.parts.block import Blocks
from sparselens.kernels.parts.quota import best
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Bits, Everything, Mixture, Selection, Tiles, pack


class Chooser(ABC):
    """Says which keys, or tiles, of a row come first. `heads` are the numbers of the call's heads in the layer."""

    @abstractmethod
    def keys(self, call: AttentionCall, heads: Tensor, start: int, stop: int) -> Tensor:
        """Return a number for every pair of queries `start:stop`, `-inf` where not allowed: as `call.scores`."""

    @abstractmethod
    def tiles(self, blocks: Blocks, heads: Tensor) -> Tensor:
        """Return a number for every tile of one sequence: `[heads, n_q, n_k]`."""


def shaped(policy: Policy, call: AttentionCall, memory: Memory, chooser: Chooser) -> Selection:
    """Return a selection of the shape that `policy` gives this call, filled as the `chooser` says.

    What the policy leaves in `memory`, its removals among it, is about its own selection, not about this one.
    """
    selection = policy.choose(call, memory)
    return filled(selection, call, torch.arange(call.heads, device=call.device), chooser)


def filled(selection: Selection, call: AttentionCall, heads: Tensor, chooser: Chooser) -> Selection:
    """Return a selection with the counts of `selection`: by tiles where it has tiles, else by rows."""
    if isinstance(selection, Everything):
        return selection
    if isinstance(selection, Mixture):
        parts = []
        for owned, part in selection.parts:
            some = torch.tensor(owned, device=call.device)
            parts.append((owned, filled(part, of_heads(call, some), heads[some], chooser)))
        return Mixture(parts)
    if isinstance(selection, Tiles):
        return _tiles(selection, call, heads, chooser)
    counts = selection.counts(call).expand(call.batch, call.heads, -1)
    rows = []
    for start, stop in call.row_blocks():
        numbers = chooser.keys(call, heads, start, stop)
        rows.append(pack(best(numbers, counts[:, :, start:stop])))
    return Bits(torch.cat(rows, 2), call.k_len)


def of_heads(call: AttentionCall, heads: Tensor) -> AttentionCall:
    """Return the call of some query heads alone, each with its own copy of its keys and values."""
    if len(heads) == call.heads:
        return call
    shared = heads // call.group
    return replace(
        call,
        query=call.query[:, heads],
        key=call.key[:, shared],
        value=call.value[:, shared],
        sinks=None if call.sinks is None else call.sinks[heads],
        query_raw=None,
        key_raw=None,
    )


def _tiles(selection: Tiles, call: AttentionCall, heads: Tensor, chooser: Chooser) -> Tiles:
    """Return as many whole tiles in each block of queries; tiles that are allowed in part stay as they are."""
    of_row = {row: selection.sequence(row, queries, keys) for row, queries, keys, _ in call.sequences()}
    order = iter(of_row.values())

    def choose(blocks: Blocks) -> Tensor:
        one = next(order)
        if not isinstance(one, Tiles):
            raise TypeError("a sequence of a block map is a block map")
        kept = _aligned(one, blocks)
        whole = _whole(blocks)
        count = (kept & whole).sum(-1).expand(blocks.call.heads, -1)
        numbers = chooser.tiles(blocks, heads).masked_fill(~whole, float("-inf"))
        return best(numbers, count) | (kept & ~whole)

    return tiles_of(call, selection.block_q, selection.block_k, choose)


def _aligned(selection: Tiles, blocks: Blocks) -> Tensor:
    """Return the map of one sequence in the frame of its blocks: bool `[heads or 1, n_q, n_k]`."""
    start = blocks.first - selection.first
    kept = selection.map[0]
    kept = kept[:, max(start, 0) :] if start >= 0 else pad(kept, (0, 0, -start, 0), value=False)
    short = (0, max(0, blocks.n_k - kept.shape[-1]), 0, max(0, blocks.n_q - kept.shape[-2]))
    return pad(kept, short, value=False)[:, : blocks.n_q, : blocks.n_k]


def _whole(blocks: Blocks) -> Tensor:
    """Return which tiles the model allows in every pair of their rows and keys: bool `[n_q, n_k]`."""
    call = blocks.call
    if call.allowed.window is None and call.allowed.extra is None:
        return blocks.past
    barred = torch.zeros(blocks.n_q, blocks.n_k, dtype=torch.float32, device=call.device)
    for start, stop in call.row_blocks():
        closed = (~call.allowed.rows(start, stop)[0, 0]).float()
        barred.index_add_(0, blocks.query_block[start:stop], blocks.summed_keys(closed))
    return (barred == 0) & blocks.past
