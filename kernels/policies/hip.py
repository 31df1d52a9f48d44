"""HiP: the best keys of each block of queries, found by a tree search over the past."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.parts.assemble import tiles_of
from sparselens.kernels.parts.block import Blocks
from sparselens.kernels.parts.logit import logits
from sparselens.kernels.parts.staged import Stages
from sparselens.kernels.parts.tree import REPRESENTATIVES, Tree, extended
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Band, Selection, Union

VARIANTS = ("v1.0", "v1.2")
FINE = 64  # up to so many key blocks the authors search at full resolution


@dataclass(frozen=True)
class HiP(Policy):
    """Keeps `mask_k` keys found by tree search per block of `block_q` queries, the first `sink`, the last `window`.

    Variant `v1.0`: the past up to the block's last query is searched in blocks of `block_k` keys (`parts/tree.py`). A
    block's score is the largest of its tokens under every `stride`-th query of the block; a token counts for a query
    that is at least `window - block_q - block_k` positions behind it. With `resolution` 2 and more than 64 blocks to
    find, half as many are searched and each brings its right neighbour. With `channels` > 0, from `channels_from` keys
    on, the search reads only so many channels of the queries (those with the largest sum over the block), half of them
    in the first round.

    Variant `v1.2`: the past but for sink and window is searched in stages (`parts/staged.py`): chunks of `chunks`
    tokens, of which `keeps` tokens' worth go on to the next stage, under means of `averaged` queries; with `together`
    the heads of a layer choose together. The window is exact to the token.

    Blocks of queries that begin before position `dense_rows` keep everything.
    """

    mask_k: int = 512
    window: int = 128
    sink: int = 32
    block_q: int = 32
    block_k: int = 2
    stride: int = 2
    representative: str = "first"
    resolution: int = 2
    channels: int = 32
    channels_from: int = 2048
    dense_rows: int = 0
    variant: str = "v1.0"
    chunks: tuple[int, ...] = (256, 32, 8)
    keeps: tuple[int, ...] = (32768, 8192)
    averaged: tuple[int, ...] = (4, 4, 1)
    together: bool = True

    name: ClassVar[str] = "hip"
    budget: ClassVar[tuple[str, ...]] = ("mask_k",)
    lookahead: ClassVar[bool] = True
    source: ClassVar[str] = (
        "HiP Attention, arXiv:2406.09827; DeepAuto-AI/hip-attention fea42c7, v1_0 and v1_2"
    )
    short_input: ClassVar[str] = (
        "v1.0: the first 3 * mask_k * (log2(keys / (2 * mask_k)) + 1) rows of a prompt are dense; v1.2: prompts up to "
        "8,192 tokens, and layers 0 to 3 and 31"
    )
    card: ClassVar[str] = (
        "Both phases; per query head, in v1.2 by default for all heads of a layer at once. What a half contains beyond "
        "its representative is never seen: a needle whose half starts badly is lost. In v1.0 the authors' default "
        "moves representatives at random in the middle round; here they are the first or the middle position. Blocks "
        "are counted from position 0, the authors' from the first sparse query; nodes are exact fractions, theirs "
        "floats; at decode they run 16 interleaved searches, here one. The block's own keys are forced. v1.2 has "
        "mask_k=2048, window=1024, sink=256, block_q=64; its stretched positions and its refresh every 8 to 32 "
        "decoded tokens are not here. The reference computes every score to look at few."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mask_k", "block_q", "block_k", "stride", "resolution"):
            self.require(getattr(self, name) >= 1, f"{name} is 1 or more, not {getattr(self, name)}")
        for name in ("window", "sink", "channels", "channels_from", "dense_rows"):
            self.require(getattr(self, name) >= 0, f"{name} is 0 or more, not {getattr(self, name)}")
        self.require(
            self.representative in REPRESENTATIVES,
            f"representative is one of {', '.join(REPRESENTATIVES)}, not {self.representative!r}",
        )

        self.require(
            self.variant in VARIANTS, f"variant is one of {', '.join(VARIANTS)}, not {self.variant!r}"
        )
        if self.variant == "v1.2":
            self._check_stages()

    def _check_stages(self) -> None:
        sizes, counts = self.chunks, (*self.keeps, self.mask_k)
        self.require(
            0 < len(sizes) == len(self.keeps) + 1 == len(self.averaged),
            "chunks and averaged have one number a stage, keeps one less",
        )
        self.require(min(*sizes, *self.averaged) >= 1, "chunks and averaged are 1 or more")
        self.require(
            all(big % small == 0 for big, small in pairwise(sizes)),
            f"chunks divide each other, largest first; {list(sizes)} do not",
        )
        self.require(
            all(count >= size for count, size in zip(counts, sizes, strict=True)),
            "keeps and mask_k hold at least one chunk of their stage",
        )
        self.require(self.window >= 1, "window is 1 or more in v1.2: a row always keeps itself")

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return the key blocks of each query block."""
        del memory
        if self.variant == "v1.2":
            found = tiles_of(call, self.block_q, self.chunks[-1], self._staged)
            return Union((Band(self.sink, self.window), found))
        return tiles_of(call, self.block_q, self.block_k, self._kept)

    def _kept(self, blocks: Blocks) -> Tensor:
        """Return the map of one sequence: bool `[heads, n_q, n_k]`."""
        call = blocks.call
        times = self.resolution if -(-self.mask_k // self.block_k) > FINE else 1
        wanted, least = (
            -(-max(1, size // times) // self.block_k) for size in (self.mask_k, -(-self.mask_k // 2))
        )
        sparse = self.channels > 0 and call.k_len >= self.channels_from and wanted >= 2 * FINE
        full = _reads(blocks, self.channels) if sparse else call
        half = _reads(blocks, max(1, self.channels // 2)) if sparse else call
        kept = torch.zeros(call.heads, blocks.n_q, blocks.n_k, dtype=torch.bool, device=call.device)
        for row in range(blocks.n_q):
            places = (blocks.query_block == row).nonzero()[:, 0]
            start, stop = int(places[0]), int(places[-1]) + 1
            end = int(call.query_positions[0, stop - 1]) + 1
            tables = [self._scores(blocks, one, start, stop) for one in ([half, full] if sparse else [full])]
            total = -(-end // self.block_k)
            tree = Tree(end, self.block_k, wanted, least, self.representative)
            kept[:, row, :total] = extended(tree.found([table[:, :total] for table in tables]), times)
        return kept | self._always(blocks)

    def _scores(self, blocks: Blocks, call: AttentionCall, start: int, stop: int) -> Tensor:
        """Return the score of every key block for the queries `start:stop`: `[heads, n_k]`, finite."""
        query = call.query_positions[0, start : stop : self.stride]
        near = max(0, self.window - self.block_q - self.block_k)
        behind = query[:, None] - call.key_positions[0] >= near
        scores = call.scores(start, stop)[0, :, :: self.stride].masked_fill(~behind, float("-inf"))
        table = blocks.largest_keys(scores.amax(1))
        return table.clamp(min=torch.finfo(table.dtype).min)

    def _staged(self, blocks: Blocks) -> Tensor:
        """Return what the staged search finds in one sequence: bool `[heads, n_q, n_k]`."""
        call, length = blocks.call, int(blocks.call.key_positions[0, -1]) + 1
        native = call.allowed.window or length
        kept = torch.zeros(call.heads, blocks.n_q, blocks.n_k, dtype=torch.bool, device=call.device)
        for row in range(blocks.n_q):
            places = (blocks.query_block == row).nonzero()[:, 0]
            position = int(call.query_positions[0, places[0]])
            gap = position - call.key_positions[0]
            seen = (gap >= 0) & (gap < native)
            tables = []
            for size in self.averaged:
                query = _means(call.query[0, :, places].to(call.accumulate), size)
                best = logits(call, query, call.key[0].to(call.accumulate)).amax(1)
                table = best.new_full((call.heads, length), float("-inf"))
                table[:, call.key_positions[0]] = best.masked_fill(~seen, float("-inf"))
                tables.append(table)
            limit = max(0, position - max(0, self.window - self.chunks[0]))
            stages = Stages(
                self.sink, length - self.window, limit, self.chunks, self.keeps, self.mask_k, self.together
            )
            kept[:, row] = stages.found(tables)
        first = (blocks.first + torch.arange(blocks.n_q, device=call.device)) * self.block_q
        return kept | (first < self.dense_rows)[:, None]

    def _always(self, blocks: Blocks) -> Tensor:
        """Return the sink, the window up to each block's last query, the block itself, dense rows: `[n_q, n_k]`."""
        at = torch.arange(blocks.n_k, device=blocks.call.device) * self.block_k
        first = (blocks.first + torch.arange(blocks.n_q, device=at.device))[:, None] * self.block_q
        end = (first + self.block_q).clamp(max=int(blocks.call.query_positions[0, -1]) + 1)
        recent = at + self.block_k > end - self.window
        return (at < self.sink) | recent | blocks.diagonal | (first < self.dense_rows)


def _means(rows: Tensor, size: int) -> Tensor:
    """Return the means of each `size` consecutive rows of `[heads, n, d]`: `[heads, ceil(n / size), d]`."""
    return torch.stack([rows[:, at : at + size].mean(1) for at in range(0, rows.shape[1], size)], 1)


def _reads(blocks: Blocks, channels: int) -> AttentionCall:
    """Return the call with only the strongest `channels` channels of each query block, the others 0."""
    call = blocks.call
    query = call.query[0]
    sums = query.new_zeros(call.heads, blocks.n_q, call.head_dim).index_add_(
        1, blocks.query_block, query.abs()
    )
    best = sums.topk(min(channels, call.head_dim), -1).indices
    mask = torch.zeros_like(sums, dtype=torch.bool).scatter_(-1, best, True)
    return replace(call, query=(query * mask[:, blocks.query_block])[None])


POLICY = HiP
