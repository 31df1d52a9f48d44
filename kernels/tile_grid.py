"""How the blocked kernel sees one sequence: its sizes, and what a batch of its work looks like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sparselens.kernels.call import Allowed, AttentionCall

DROPPED = -1e30  # finite, so that 0 * DROPPED is 0 and not NaN
NONE = 1 << 30  # no query: padding of a strip
BATCH_CELLS = 1 << 20  # score cells computed together: 4 MB of float32, which stays in a last-level cache


@dataclass(frozen=True)
class Grid:
    """How a call of one sequence is cut: sizes in tokens, positions of the first query and key."""

    q_len: int
    k_len: int
    heads: int
    kv_heads: int
    block: int
    q_start: int
    k_start: int
    window: int | None

    @property
    def high(self) -> int:
        """Queries in a tile."""
        return min(self.block, self.q_len)

    @property
    def q_tiles(self) -> int:
        """Number of query tiles."""
        return -(-self.q_len // self.block)

    @property
    def k_tiles(self) -> int:
        """Number of key tiles."""
        return -(-self.k_len // self.block)

    @property
    def group(self) -> int:
        """Query heads that share one key-value head."""
        return self.heads // self.kv_heads

    @staticmethod
    def of(call: AttentionCall, block: int) -> Grid:
        """Return the grid of a call of one sequence whose positions are consecutive."""
        starts = int(call.query_positions[0, 0]), int(call.key_positions[0, 0])
        return Grid(call.q_len, call.k_len, call.heads, call.kv_heads, block, *starts, call.allowed.window)

    def call(self) -> AttentionCall:
        """Return a call of this grid without content: head_dim 0, enough to ask a selection for its mask."""
        query = torch.arange(self.q_start, self.q_start + self.q_len)
        key = torch.arange(self.k_start, self.k_start + self.k_len)
        return AttentionCall(
            query=torch.empty(1, self.heads, self.q_len, 0),
            key=torch.empty(1, self.kv_heads, self.k_len, 0),
            value=torch.empty(1, self.kv_heads, self.k_len, 0),
            query_positions=query[None],
            key_positions=key[None],
            allowed=Allowed(query, key, None, self.window),
            scale=1.0,
        )


class Batch(Protocol):
    """Strips of equal shape that are computed together: `units` of them, `high` queries against `n` keys.

    `heads` `[units, folded]`: the heads of a strip, which share its keys and a kv head. `queries` `[units, high]`
    and `keys` `[units, n]`: indices in the call, int64; the query `NONE` and the key -1 are padding.
    """

    @property
    def heads(self) -> Tensor:
        """Heads of each strip."""

    @property
    def queries(self) -> Tensor:
        """Queries of each strip."""

    @property
    def keys(self) -> Tensor:
        """Keys of each strip."""

    @property
    def cells(self) -> int:
        """How many scores are computed, padding included."""

    @property
    def k_rows(self) -> int:
        """How long keys and values must at least be, filled up with zeros."""

    @property
    def copied(self) -> int:
        """How many keys are copied; 0 where they are read where they lie."""

    def pick(self, tensor: Tensor, buffer: Tensor) -> Tensor:
        """Return the strips' rows `[units, n, dim]` of keys or values `[kv_heads, k_rows, dim]`.

        In `buffer` `[copied or more, dim]` where they are copied: fresh memory would cost as much as the copy.
        """

    def add_bias(self, scores: Tensor) -> None:
        """Add `DROPPED` to what is not kept or not allowed; `scores` `[units, folded, high, n]`."""
