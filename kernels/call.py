"""One layer's attention, as the model asks for it: tensors, positions and the model's own mask.

Everything else in this folder reads an `AttentionCall`; nothing writes one. `AttentionCall.scores` is the
definition of the scores that kernels, policies and statistics must agree with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparselens.kernels.rope import Rope

_ROW_BUDGET = 1 << 22  # score elements held at once when a mask or a score block is walked row by row


@dataclass(frozen=True, eq=False)
class Allowed:
    """The model's own mask: causality, native window, padding. Never held whole.

    `query_index` `[q_len]`, `key_index` `[k_len]`: int64 index in the sequence, padding and cache offset
    included, ascending. `key_valid` `[batch, k_len]` and `query_valid` `[batch, q_len]`: False on padding,
    None
    when there is none; a padded query is an empty row. `window`: a key is seen while
    `query_index - key_index < window`. `extra(batch, query_index, key_index) -> bool`: any further mask of
    the
    model, called with broadcastable index tensors.
    """

    query_index: Tensor
    key_index: Tensor
    key_valid: Tensor | None = None
    window: int | None = None
    extra: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    query_valid: Tensor | None = None

    @property
    def is_plain_causal(self) -> bool:
        """True when a key is allowed exactly if it is not in the query's future."""
        return (
            self.key_valid is None and self.query_valid is None and self.extra is None and not self._windowed
        )

    @property
    def _windowed(self) -> bool:
        if self.window is None or not len(self.query_index) or not len(self.key_index):
            return False
        return int(self.query_index[-1]) - int(self.key_index[0]) >= self.window

    def rows(self, start: int, stop: int, keys: slice = slice(None)) -> Tensor:
        """Return the mask of queries `start:stop`: bool `[batch or 1, 1, stop - start, n_keys]`."""
        query = self.query_index[start:stop, None]
        key = self.key_index[keys][None, :]
        mask = key <= query
        if self.window is not None:
            mask &= query - key < self.window
        mask = mask[None, None]
        if self.key_valid is not None:
            mask = mask & self.key_valid[:, None, None, keys]
        if self.query_valid is not None:
            mask = mask & self.query_valid[:, None, start:stop, None]
        if self.extra is not None:
            batch = 1 if self.key_valid is None else self.key_valid.shape[0]
            rows = torch.arange(batch, device=query.device)[:, None, None, None]
            mask = mask & self.extra(rows, query[None, None], key[None, None])
        return mask

    def counts(self, batch: int) -> Tensor:
        """Count the keys each query may see: int64 `[batch, q_len]`, without a `q_len * k_len` mask."""
        if self.extra is not None:
            return self._counted_by_rows(batch)
        last = torch.searchsorted(self.key_index, self.query_index, right=True)
        first = torch.zeros_like(last)
        if self.window is not None:
            first = torch.searchsorted(self.key_index, self.query_index - self.window, right=True)
        if self.key_valid is None:
            count = (last - first)[None].expand(batch, -1)
        else:
            before = torch.nn.functional.pad(self.key_valid.long().cumsum(-1), (1, 0))
            count = before[:, last] - before[:, first]
        return count if self.query_valid is None else count * self.query_valid

    def _counted_by_rows(self, batch: int) -> Tensor:
        step = max(1, _ROW_BUDGET // max(1, batch * len(self.key_index)))
        parts = [
            self.rows(start, min(start + step, len(self.query_index))).sum(-1)[:, 0]
            for start in range(0, len(self.query_index), step)
        ]
        return torch.cat(parts, -1).expand(batch, -1)

    def sequence(self, row: int, queries: Tensor, keys: Tensor) -> Allowed:
        """Return the mask of sequence `row` alone, of query and key indices that are not padding."""
        extra = self.extra
        only = None
        if extra is not None:
            whole = extra

            def only(_: Tensor, query: Tensor, key: Tensor) -> Tensor:
                return whole(torch.tensor(row, device=query.device), query, key)

        return Allowed(self.query_index[queries], self.key_index[keys], None, self.window, only, None)


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """What one layer attends with. Grouped-query as the model has it: head `h` reads kv head `h // group`.

    `query` `[batch, heads, q_len, head_dim]`; `key`, `value` `[batch, kv_heads, k_len, head_dim]`, after
    RoPE.
    `query_positions` `[batch or 1, q_len]`, `key_positions` `[batch or 1, k_len]`: int64, absolute in each
    sequence, padding excluded (-1 on padding). `softcap` bounds scores as `softcap * tanh(score / softcap)`;
    `sinks` `[heads]` are logits of a column without a value (GPT-OSS). `query_raw`, `key_raw` give the
    tensors before RoPE when asked, `rope` turns them; None where the model has none, or the batch is padded.
    Raises `ValueError` on shapes that do not fit together.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    query_positions: Tensor
    key_positions: Tensor
    allowed: Allowed
    scale: float
    softcap: float | None = None
    sinks: Tensor | None = None
    layer: int = 0
    phase: str = "prefill"
    step: int = 0
    query_raw: Callable[[], Tensor] | None = None
    key_raw: Callable[[], Tensor] | None = None
    rope: Rope | None = None

    def __post_init__(self) -> None:
        batch, heads, _, head_dim = self.query.shape
        if self.key.shape[0] != batch or self.key.shape[-1] != head_dim or heads % self.key.shape[1]:
            raise ValueError(f"query {tuple(self.query.shape)} does not fit key {tuple(self.key.shape)}")
        if self.key.shape[:3] != self.value.shape[:3]:
            raise ValueError(f"key {tuple(self.key.shape)} does not fit value {tuple(self.value.shape)}")
        if self.query_positions.shape[-1] != self.q_len or self.key_positions.shape[-1] != self.k_len:
            raise ValueError("query_positions and key_positions must be as long as query and key")
        if self.phase not in ("prefill", "decode"):
            raise ValueError(f"phase is 'prefill' or 'decode', not {self.phase!r}")

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return self.query.shape[0]

    @property
    def heads(self) -> int:
        """Number of query heads."""
        return self.query.shape[1]

    @property
    def kv_heads(self) -> int:
        """Number of key-value heads."""
        return self.key.shape[1]

    @property
    def group(self) -> int:
        """Query heads that share one key-value head."""
        return self.heads // self.kv_heads

    @property
    def q_len(self) -> int:
        """Number of queries."""
        return self.query.shape[2]

    @property
    def k_len(self) -> int:
        """Number of keys."""
        return self.key.shape[2]

    @property
    def head_dim(self) -> int:
        """Width of a query and a key."""
        return self.query.shape[3]

    @property
    def device(self) -> torch.device:
        """Where the tensors are; masks and statistics are made there too."""
        return self.query.device

    @property
    def accumulate(self) -> torch.dtype:
        """The type sums are held in: float64 for float64 tensors, else float32."""
        return torch.float64 if self.query.dtype == torch.float64 else torch.float32

    @property
    def row_step(self) -> int:
        """How many queries to take at once so that their scores stay within a fixed budget."""
        return max(1, min(self.q_len, _ROW_BUDGET // max(1, self.batch * self.heads * self.k_len)))

    def with_tensors(self, query: Tensor, key: Tensor, value: Tensor) -> AttentionCall:
        """Return the call with other tensors of the same shapes; what they are before RoPE follows from them."""
        call = replace(self, query=query, key=key, value=value, query_raw=None, key_raw=None)
        return call if self.rope is None else call.with_rope(self.rope)

    def with_rope(self, rope: Rope) -> AttentionCall:
        """Return the call of texts without padding whose tensors `rope` has turned."""
        return replace(
            self,
            rope=rope,
            query_raw=lambda: rope.undo(self.query, self.query_positions[0]),
            key_raw=lambda: rope.undo(self.key, self.key_positions[0]),
        )

    def scores(self, start: int, stop: int) -> Tensor:
        """Return scores `[batch, heads, stop - start, k_len]` of some queries, `-inf` where not allowed."""
        rows = stop - start
        query = self.query[:, :, start:stop].to(self.accumulate)
        folded = query.reshape(self.batch, self.kv_heads, self.group * rows, self.head_dim)
        scores = torch.matmul(folded, self.key.to(self.accumulate).transpose(-1, -2)).mul_(self.scale)
        if self.softcap is not None:
            scores = scores.div_(self.softcap).tanh_().mul_(self.softcap)
        scores = scores.view(self.batch, self.heads, rows, self.k_len)
        return scores.masked_fill_(~self.allowed.rows(start, stop), float("-inf"))

    def allowed_pairs(self) -> Tensor:
        """Count the (query, key) pairs the model allows: int64 `[batch]`."""
        return self.allowed.counts(self.batch).sum(-1)

    def row_blocks(self, step: int | None = None) -> Iterator[tuple[int, int]]:
        """Yield `(start, stop)` of consecutive query blocks, `step` rows each (`row_step` unless said)."""
        step = step or self.row_step
        for start in range(0, self.q_len, step):
            yield start, min(start + step, self.q_len)

    def sequences(self) -> Iterator[tuple[int, Tensor, Tensor, AttentionCall]]:
        """Yield each sequence by itself without its padding: `(batch row, query rows, key rows, call)`.

        Positions of such a call are consecutive. The call itself is yielded when there is nothing to cut.
        """
        mask = self.allowed
        for row in range(self.batch):
            queries = (
                torch.arange(self.q_len, device=self.device)
                if mask.query_valid is None
                else mask.query_valid[row].nonzero()[:, 0]
            )
            keys = (
                torch.arange(self.k_len, device=self.device)
                if mask.key_valid is None
                else mask.key_valid[row].nonzero()[:, 0]
            )
            if self.batch == 1 and len(queries) == self.q_len and len(keys) == self.k_len:
                whole = (
                    mask
                    if mask.key_valid is None and mask.query_valid is None
                    else mask.sequence(0, queries, keys)
                )
                yield 0, queries, keys, self if whole is mask else replace(self, allowed=whole)
            elif len(queries):
                yield row, queries, keys, self.sequence(row, queries, keys)

    def sequence(self, row: int, queries: Tensor, keys: Tensor) -> AttentionCall:
        """Return sequence `row` alone, with the given rows of its query and key tensors (no padding)."""
        every_query, every_key = len(queries) == self.q_len, len(keys) == self.k_len

        def cut(tensor: Tensor, index: Tensor, every: bool, dim: int) -> Tensor:
            one = tensor[row : row + 1] if tensor.shape[0] > 1 else tensor
            return one if every else one.index_select(dim, index)

        def lazily(
            raw: Callable[[], Tensor] | None, index: Tensor, every: bool
        ) -> Callable[[], Tensor] | None:
            return None if raw is None else lambda: cut(raw(), index, every, 2)

        return replace(
            self,
            query=cut(self.query, queries, every_query, 2),
            key=cut(self.key, keys, every_key, 2),
            value=cut(self.value, keys, every_key, 2),
            query_positions=cut(self.query_positions, queries, every_query, 1),
            key_positions=cut(self.key_positions, keys, every_key, 1),
            allowed=self.allowed.sequence(row, queries, keys),
            query_raw=lazily(self.query_raw, queries, every_query),
            key_raw=lazily(self.key_raw, keys, every_key),
        )
