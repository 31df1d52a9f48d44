"""Keys at random: what a density is worth when nothing is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Bits, Selection, Tiles, pack

GRANULARITIES = ("token", "block")


@dataclass(frozen=True)
class Random(Policy):
    """Keeps each key with the probability that makes the expected share of a row `density`; itself always.

    Independent for every head. `granularity`: `token` draws single keys, `block` tiles of `block` queries by
    `block` keys (the diagonal tile forced). The draw depends on seed, layer, head and positions only, so
    decoding continues the prefill's mask.
    """

    density: float = 0.1
    granularity: str = "token"
    seed: int = 0
    block: int = 128

    name: ClassVar[str] = "random"
    budget: ClassVar[tuple[str, ...]] = ("density",)
    source: ClassVar[str] = "reference: no information"
    evidence: ClassVar[str] = "reference"
    card: ClassVar[str] = (
        "The diagonal is forced and counts in the budget; where it is more than the budget (the first rows), "
        "the density is higher. Use the granularity of the policy it is compared with, and several seeds."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 < self.density <= 1, f"density lies in (0, 1], not {self.density}")
        self.require(self.granularity in GRANULARITIES, f"granularity is one of {', '.join(GRANULARITIES)}")
        self.require(self.block >= 1, f"block is 1 or more, not {self.block}")

    @property
    def reads_tensors(self) -> bool:
        """Positions alone decide."""
        return False

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return a packed mask, or a tile map."""
        del memory
        heads = torch.arange(call.heads, device=call.device)
        if self.granularity == "block":
            first = int(call.query_positions[call.query_positions >= 0].min()) // self.block
            q_stop, k_stop = (
                int(at.max()) // self.block + 1 for at in (call.query_positions, call.key_positions)
            )
            queries = torch.arange(first, q_stop, device=call.device)[None]
            keys = torch.arange(k_stop, device=call.device)[None]
            return Tiles(self._draw(call.layer, heads, queries, keys), self.block, self.block, first)
        parts = [
            pack(self._draw(call.layer, heads, call.query_positions[:, start:stop], call.key_positions))
            for start, stop in call.row_blocks()
        ]
        return Bits(torch.cat(parts, 2), call.k_len)

    def _draw(self, layer: int, heads: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        """Return the draw for units (tokens or tiles) at some positions: bool `[batch, heads, q, k]`.

        Of the `q + 1` units a query unit sees, itself is kept, and each other with probability
        `(density * (q + 1) - 1) / q`.
        """
        seen = (queries + 1).clamp(min=1).double()
        chance = ((self.density * seen - 1) / (seen - 1).clamp(min=1)).clamp(0, 1)
        query, key = queries[:, None, :, None], keys[:, None, None, :]
        number = scramble(scramble(query * 1_000_003 + self.seed) + key)
        number = scramble(number + ((layer << 20) + heads)[None, :, None, None])
        return (number < (chance * 2**31).long()[:, None, :, None]) | (query == key)


def scramble(number: Tensor) -> Tensor:
    """Return a hash of int64 values, evenly spread over 0 … 2^31 - 1 (two rounds of multiply and shift)."""
    mask = 0x7FFFFFFF
    number = (number & mask) * 0x45D9F3B & mask
    number = (number ^ (number >> 16)) * 0x119DE1F3 & mask
    return number ^ (number >> 15)


POLICY = Random
