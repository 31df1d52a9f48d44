"""A random selection of another policy's shape: as many keys a row, or tiles a block of rows, drawn at random."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.parts.block import Blocks
from sparselens.kernels.parts.shape import Chooser, shaped
from sparselens.kernels.policies.dense import Dense
from sparselens.kernels.policies.random import scramble
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Selection


@dataclass(frozen=True)
class RandomOf(Policy):
    """Keeps as many keys in each row of each head as `policy` keeps there: itself, and others at random.

    Where `policy` keeps tiles: as many whole tiles in each block of queries at random; tiles that the model allows in
    part (on the diagonal) are as the policy has them. The draw depends on seed, layer, head and positions only.
    """

    policy: Policy = field(default_factory=Dense)
    seed: int = 0

    name: ClassVar[str] = "random_of"
    source: ClassVar[str] = "reference: no information but how many"
    evidence: ClassVar[str] = "reference"
    card: ClassVar[str] = (
        "What the number of kept keys alone is worth, row by row: the floor of every method of that shape. "
        "Exactly as many keys a row as the policy keeps, uniform among those the model allows; use several seeds."
    )

    @property
    def lookahead(self) -> bool:  # type: ignore[override]
        """As the policy whose shape it has."""
        return self.policy.lookahead

    @property
    def off_label(self) -> bool:  # type: ignore[override]
        """As the policy whose shape it has."""
        return self.policy.off_label

    @property
    def reads_tensors(self) -> bool:
        """As the policy whose shape it has: it may keep more keys in some rows than in others."""
        return self.policy.reads_tensors

    def watch(self, call: AttentionCall, memory: Memory) -> None:
        """Let the policy whose shape it has see the call."""
        self.policy.watch(call, memory)

    def wider(self, factor: float) -> Policy:
        """Return the random selection of the wider policy."""
        return replace(self, policy=self.policy.wider(factor))

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return a packed mask, or a tile map where the policy makes one."""
        return shaped(self.policy, call, memory, Drawn(self.seed))


@dataclass(frozen=True)
class Drawn(Chooser):
    """Chooses by a hash of seed, layer, head and positions."""

    seed: int

    def keys(self, call: AttentionCall, heads: Tensor, start: int, stop: int) -> Tensor:
        """Return a number for every allowed pair of some rows; the largest for the query itself."""
        query, key = call.query_positions[:, start:stop], call.key_positions
        own = query[:, None, :, None] == key[:, None, None, :]
        number = self._draw(call.layer, heads, query, key).masked_fill_(own, 2.0)
        return number.masked_fill_(~call.allowed.rows(start, stop), float("-inf"))

    def tiles(self, blocks: Blocks, heads: Tensor) -> Tensor:
        """Return a number for every tile."""
        device = blocks.call.device
        query = torch.arange(blocks.first, blocks.first + blocks.n_q, device=device)[None]
        key = torch.arange(blocks.n_k, device=device)[None]
        return self._draw(blocks.call.layer, heads, query, key)[0]

    def _draw(self, layer: int, heads: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        """Return numbers in [0, 1) for units at some positions: float32 `[batch, heads, q, k]`."""
        pair = scramble(scramble(queries[:, :, None] * 1_000_003 + self.seed) + keys[:, None, :])
        number = scramble(pair[:, None] + ((layer << 20) + heads)[None, :, None, None])
        return number.to(torch.float32).div_(2**31)


POLICY = RandomOf
