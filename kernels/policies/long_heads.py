"""LongHeads' selection: each head reads the first, the last and the best chunks, chosen for each token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.parts.assemble import tiles_of
from sparselens.kernels.parts.block import Blocks, repeated
from sparselens.kernels.parts.budget import top_k
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Selection


class _Seen(NamedTuple):
    """What a layer has seen of one sequence: keys of whole chunks, and the queries of the chunk that is not yet."""

    chunk_keys: Tensor
    queries: Tensor


@dataclass(frozen=True)
class LongHeads(Policy):
    """Keeps, for each query and query head, `chunks` chunks of `chunk` tokens.

    The first chunk, the one before the query's own and its own are forced and count; the others are those whose chunk
    key has the largest product with the query. Chunk key: attention inside the chunk without causality, its outputs
    averaged; that average, as a query over the chunk's keys, weighs their mean.
    """

    chunks: int = 16
    chunk: int = 256

    name: ClassVar[str] = "long_heads"
    budget: ClassVar[tuple[str, ...]] = ("chunks",)
    source: ClassVar[str] = "LongHeads, arXiv:2402.10685; LuLuLuyi/LongHeads 1c9f72e"
    short_input: ClassVar[str] = "dense up to 4096 tokens (begin_selective_length), by its own rule too"
    card: ClassVar[str] = (
        "The selection alone. The paper extends the context: it numbers the kept chunks anew, so that positions stay "
        "within the trained length; here positions stay, and it is no LongHeads beyond that length. As in the authors' "
        "code queries before RoPE are scored against chunk keys that are rotated inside their chunk; where a call does "
        "not know its rotation (no rotary positions, a padded batch) both are as they are. Decoding needs to have seen "
        "the prompt."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.chunk >= 1, f"chunk is 1 or more, not {self.chunk}")
        self.require(self.chunks >= 3, f"chunks is 3 or more (first, previous, own), not {self.chunks}")

    def wider(self, factor: float) -> Policy:
        """Return the policy with `factor` times as many chunks, at least the forced ones."""
        return self(chunks=max(round(self.chunks * factor), 3))

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return a map of single queries by chunks; raises `ValueError` where earlier queries were not seen."""
        left = iter(memory.get(call.layer, "chunks", [None] * call.batch))
        made: list[_Seen | None] = []

        def choose(blocks: Blocks) -> Tensor:
            seen = self._seen(blocks.call, next(left))
            made.append(seen)
            return self._chosen(blocks, seen)

        tiles = tiles_of(call, 1, self.chunk, choose)
        memory.set(call.layer, "chunks", made)
        return tiles

    def watch(self, call: AttentionCall, memory: Memory) -> None:
        """Make the chunk keys of a call that is left dense, for the tokens after it."""
        if self.phase != "prefill":
            self.select(call, memory)

    def _chosen(self, blocks: Blocks, seen: _Seen) -> Tensor:
        call = blocks.call
        scores = _query(call) @ seen.chunk_keys.transpose(1, 2)
        scores = pad(scores[..., : blocks.n_k], (0, blocks.n_k - scores.shape[-1]), value=float("-inf"))
        forced = blocks.sink(1) | blocks.local(2)
        return top_k(scores.masked_fill(forced, float("inf")), self.chunks, blocks.reach)

    def _seen(self, call: AttentionCall, before: _Seen | None) -> _Seen:
        """Return what was seen before and in this call."""
        query = _query(call)
        if before is None:
            before = _Seen(query[:, :0], query[:, :0])
        done = before.chunk_keys.shape[1]
        known = done * self.chunk + before.queries.shape[1] == int(call.query_positions[0, 0])
        self.require(known, "the queries of earlier tokens were not seen in this layer")
        queries = torch.cat([before.queries, query], 1)
        whole = queries.shape[1] // self.chunk
        made = [
            self._chunk_key(call, queries[:, at * self.chunk : (at + 1) * self.chunk], done + at)
            for at in range(whole)
        ]
        return _Seen(torch.cat([before.chunk_keys, *made], 1), queries[:, whole * self.chunk :])

    def _chunk_key(self, call: AttentionCall, query: Tensor, number: int) -> Tensor:
        """Return the key of one chunk: `[heads, 1, d]`; 0 where the cache no longer holds all of the chunk."""
        start = number * self.chunk - int(call.key_positions[0, 0])
        if start < 0:
            return torch.zeros_like(query[:, :1])
        place = slice(start, start + self.chunk)
        key = call.key[:, :, place]
        if call.rope is not None:
            inside = torch.arange(self.chunk, device=call.device)
            key = call.rope.turn(call.rope.undo(key, call.key_positions[0, place]), inside)
            query = call.rope.turn(query[None], inside)[0]
        key, value = (
            repeated(tensor[0].to(call.accumulate), call.group) for tensor in (key, call.value[:, :, place])
        )
        mean = (torch.softmax(query @ key.transpose(1, 2) * call.scale, -1) @ value).mean(1, keepdim=True)
        return torch.softmax(mean @ key.transpose(1, 2) * call.scale, -1) @ key


def _query(call: AttentionCall) -> Tensor:
    """Return the queries that are scored: `[heads, q_len, d]`, before RoPE where the call knows it."""
    query = call.query if call.rope is None else call.rope.undo(call.query, call.query_positions[0])
    return query[0].to(call.accumulate)


POLICY = LongHeads
