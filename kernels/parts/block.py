"""The geometry of blocks in one sequence, what pools over them, and the always-keep rules on a block map.

Blocks are counted in absolute positions, from 0. A block map is bool `[heads or 1, n_q, n_k]`: query block
`first + i` (positions `(first + i) * block_q …`) by key block `j` (positions `j * block_k …`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall


@dataclass(frozen=True, eq=False)
class Blocks:
    """How one sequence without padding is cut into blocks of `block_q` queries and `block_k` keys.

    `first` is the first query block, `n_q` and `n_k` count query blocks from there and key blocks from 0.
    """

    call: AttentionCall
    block_q: int
    block_k: int
    first: int
    n_q: int
    n_k: int

    @staticmethod
    def of(call: AttentionCall, block_q: int, block_k: int | None = None) -> Blocks:
        """Cut a call of one sequence (see `AttentionCall.sequences`); `block_k` as `block_q` unless said."""
        block_k = block_k or block_q
        first = int(call.query_positions[0, 0]) // block_q
        last = int(call.query_positions[0, -1]) // block_q
        return Blocks(
            call, block_q, block_k, first, last - first + 1, int(call.key_positions[0, -1]) // block_k + 1
        )

    @property
    def query_block(self) -> Tensor:
        """The place of each query's block in the map: int64 `[q_len]`."""
        return self.call.query_positions[0] // self.block_q - self.first

    @property
    def key_block(self) -> Tensor:
        """The block of each key: int64 `[k_len]`."""
        return self.call.key_positions[0] // self.block_k

    def pooled_queries(self, tensor: Tensor) -> Tensor:
        """Return the mean over each query block of `[heads, q_len, d]`: `[heads, n_q, d]`; real tokens only."""
        return _mean(tensor, self.query_block, self.n_q)

    def pooled_keys(self, tensor: Tensor) -> Tensor:
        """Return the mean over each key block of `[heads, k_len, d]`: `[heads, n_k, d]`; empty blocks are 0."""
        return _mean(tensor, self.key_block, self.n_k)

    def summed_keys(self, values: Tensor) -> Tensor:
        """Return the sum over each key block of `[…, k_len]`: `[…, n_k]`."""
        return values.new_zeros(*values.shape[:-1], self.n_k).index_add_(-1, self.key_block, values)

    def largest_keys(self, values: Tensor) -> Tensor:
        """Return the maximum over each key block of `[…, k_len]`: `[…, n_k]`, `-inf` in empty blocks."""
        out = values.new_full((*values.shape[:-1], self.n_k), float("-inf"))
        return out.scatter_reduce_(-1, self.key_block.expand(values.shape), values, "amax")

    @property
    def reach(self) -> Tensor:
        """Which blocks hold a pair that the model allows: bool `[n_q, n_k]` (causality and native window)."""
        query, key = self._corners()
        seen = (key[:, 0] <= query[:, 1, None]) & (self._filled > 0)
        window = self.call.allowed.window
        return seen if window is None else seen & (query[:, 0, None] - key[:, 1] < window)

    @property
    def past(self) -> Tensor:
        """Which key blocks lie before the whole query block: bool `[n_q, n_k]`."""
        query, key = self._corners()
        return (key[:, 1] < query[:, 0, None]) & self.reach

    @property
    def diagonal(self) -> Tensor:
        """Which key blocks hold a position of the query block itself: bool `[n_q, n_k]`."""
        query, key = self._corners()
        return (key[:, 0] <= query[:, 1, None]) & (key[:, 1] >= query[:, 0, None])

    @property
    def newest(self) -> Tensor:
        """The key block that holds the query block's last position: bool `[n_q, n_k]`."""
        query, _ = self._corners()
        last = query[:, 1].clamp(max=int(self.call.query_positions[0, -1])) // self.block_k
        return torch.arange(self.n_k, device=self.call.device) == last[:, None]

    def sink(self, blocks: int = 1) -> Tensor:
        """The first key blocks, where the model allows them: bool `[n_q, n_k]`."""
        return (torch.arange(self.n_k, device=self.call.device) < blocks) & self.reach

    def local(self, blocks: int) -> Tensor:
        """The newest `blocks` key blocks of each query block, the diagonal included: bool `[n_q, n_k]`."""
        query, _ = self._corners()
        gap = query[:, 1, None] // self.block_k - torch.arange(self.n_k, device=self.call.device)
        return (gap < blocks) & (gap >= 0) & self.reach

    def _corners(self) -> tuple[Tensor, Tensor]:
        """Return the first and last positions of the query blocks `[n_q, 2]` and key blocks `[n_k, 2]`."""
        query = torch.arange(self.first, self.first + self.n_q, device=self.call.device) * self.block_q
        key = torch.arange(self.n_k, device=self.call.device) * self.block_k
        return (
            torch.stack([query, query + self.block_q - 1], 1),
            torch.stack([key, key + self.block_k - 1], 1),
        )

    @property
    def _filled(self) -> Tensor:
        return self.key_block.bincount(minlength=self.n_k)


def _mean(tensor: Tensor, block: Tensor, count: int) -> Tensor:
    total = tensor.new_zeros(tensor.shape[0], count, tensor.shape[-1]).index_add_(1, block, tensor)
    return total / block.bincount(minlength=count).clamp(min=1)[:, None]


def repeated(keys: Tensor, group: int) -> Tensor:
    """Return `[kv_heads, …]` as `[heads, …]`: each key-value head once for every query head of its group."""
    return keys.repeat_interleave(group, 0)


def pooled_scores(blocks: Blocks, queries: Tensor, keys: Tensor) -> Tensor:
    """Return dot products of pooled queries `[heads, n_q, d]` and keys `[kv_heads, n_k, d]`, scaled.

    `[heads, n_q, n_k]`, `-inf` where the model allows no pair of the two blocks.
    """
    scores = queries @ repeated(keys, blocks.call.group).transpose(1, 2) * blocks.call.scale
    return scores.masked_fill(~blocks.reach, float("-inf"))
