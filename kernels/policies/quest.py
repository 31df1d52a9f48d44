"""Quest: pages of keys, ranked for each query by an upper bound of their scores."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.parts.assemble import tiles_of
from sparselens.kernels.parts.block import Blocks, repeated
from sparselens.kernels.parts.budget import top_k
from sparselens.kernels.parts.share import shared
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Everything, Selection

SHARES = ("head", "sum")


@dataclass(frozen=True)
class Quest(Policy):
    """Keeps, per query, the `max(3, token_budget // page)` pages with the largest bound of q · k, its own among them.

    A page is `page` neighbouring keys (after RoPE) with a smallest and a largest value for each channel; its bound
    `sum over channels of max(q · smallest, q · largest)` is reached by no key in it. The query's own page is forced and
    counts. `share`: each query head chooses (`head`), or a group by the sum of its bounds (`sum`). The first
    `dense_layers` layers keep everything.
    """

    token_budget: int = 1024
    page: int = 16
    share: str = "head"
    dense_layers: int = 2
    phase: str = field(default="decode", kw_only=True)

    name: ClassVar[str] = "quest"
    budget: ClassVar[tuple[str, ...]] = ("token_budget",)
    source: ClassVar[str] = "Quest, arXiv:2406.10774; mit-han-lab/Quest 01c1623"
    card: ClassVar[str] = (
        "Decode; the prefill is dense, and so are layers 0 and 1. The authors' evaluation forces no page; here the"
        " query's own page is forced and counts in the budget. The Sparse Frontier shares pages in a group by summed"
        " bounds (share=sum) and keeps the own page on top of the budget. Row-local: phase=both keeps in a prefill"
        " what decoding would."
    )
    short_input: ClassVar[str] = "dense while there are no more pages than the budget (3 pages at least)"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.token_budget >= 1, f"token_budget is 1 or more, not {self.token_budget}")
        self.require(self.page >= 1, f"page is 1 or more, not {self.page}")
        self.require(self.share in SHARES, f"share is one of {', '.join(SHARES)}, not {self.share!r}")
        self.require(self.dense_layers >= 0, f"dense_layers is 0 or more, not {self.dense_layers}")

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return a map of one row by one page a cell."""
        del memory
        if call.layer < self.dense_layers:
            return Everything()
        return tiles_of(call, 1, self.page, self._pages)

    def _pages(self, blocks: Blocks) -> Tensor:
        """Return the pages each query keeps: bool `[heads, q_len, pages]`."""
        scores = shared(page_bounds(blocks), blocks.call.group, self.share)
        own = blocks.newest
        return top_k(
            scores.masked_fill(own, torch.inf), max(3, self.token_budget // self.page), blocks.reach | own
        )


def page_bounds(blocks: Blocks) -> Tensor:
    """Return the largest q · k that each page may hold, over the keys that the query may see: `[heads, q_len, pages]`.

    Of a page that the model's own window cuts, only the keys within the window count. Pages are those before the
    query's own; of that one and later ones the bound says nothing.
    """
    call, page = blocks.call, blocks.block_k
    above, below = _folded(blocks, call.key[0], -1), _folded(blocks, call.key[0], 1)
    bounds = _bound(blocks, above.amax(2), below.amin(2))
    window = call.allowed.window
    if window is None:
        return bounds
    first = (call.query_positions[0] - window + 1).clamp(min=0)
    number = first // page
    gone = (torch.arange(page, device=call.device) < first[:, None] % page)[..., None]
    lowest = torch.finfo(above.dtype).min
    largest = above[:, number].masked_fill(gone, lowest).amax(2)
    smallest = below[:, number].masked_fill(gone, -lowest).amin(2)
    cut = _bound(blocks, largest[:, :, None], smallest[:, :, None])
    return bounds.scatter(-1, number.expand(call.heads, -1)[..., None], cut)


def _bound(blocks: Blocks, largest: Tensor, smallest: Tensor) -> Tensor:
    """Return bounds `[heads, q_len, n]` from channel values `[kv_heads, n, d]`, or `[kv_heads, q_len, n, d]`."""
    query = blocks.call.query[0].to(largest.dtype)
    above, below = (repeated(part, blocks.call.group).transpose(-1, -2) for part in (largest, smallest))
    if above.dim() == 3:
        return query.clamp(min=0) @ above + query.clamp(max=0) @ below
    rows = query[:, :, None]
    return (rows.clamp(min=0) @ above + rows.clamp(max=0) @ below)[:, :, 0]


def _folded(blocks: Blocks, keys: Tensor, sign: int) -> Tensor:
    """Return keys by page, `[kv_heads, pages, page, d]`; where there is none, the largest number times `sign`."""
    keys = keys.to(blocks.call.accumulate)
    page = blocks.block_k
    missing = sign * torch.finfo(keys.dtype).max
    whole = keys.new_full((keys.shape[0], blocks.n_k * page, keys.shape[-1]), missing)
    whole[:, blocks.call.key_positions[0]] = keys
    return whole.view(keys.shape[0], blocks.n_k, page, -1)


POLICY = Quest
