"""The best selection of another policy's shape: as many keys a row, or tiles a block of rows, chosen by exact mass."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.parts.block import Blocks
from sparselens.kernels.parts.shape import Chooser, shaped
from sparselens.kernels.policies.dense import Dense
from sparselens.kernels.policies.oracle_mass import log_weights
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Selection


@dataclass(frozen=True)
class OracleOf(Policy):
    """Keeps as many keys in each row of each head as `policy` keeps there, those with the largest dense weight.

    Where `policy` keeps tiles: as many whole tiles in each block of queries, those with the most dense mass; tiles
    that the model allows in part (on the diagonal) are as the policy has them, so that rows keep equally many keys.
    """

    policy: Policy = field(default_factory=Dense)

    name: ClassVar[str] = "oracle_of"
    lookahead: ClassVar[bool] = True
    source: ClassVar[str] = "reference: exact scores"
    evidence: ClassVar[str] = "reference"
    card: ClassVar[str] = (
        "On the same queries and keys no selection of that shape has more dense mass: `policy` itself cannot. "
        "A block of tiles is chosen by the mass of all its rows, later ones included."
    )

    @property
    def off_label(self) -> bool:  # type: ignore[override]
        """As the policy whose shape it has."""
        return self.policy.off_label

    def watch(self, call: AttentionCall, memory: Memory) -> None:
        """Let the policy whose shape it has see the call."""
        self.policy.watch(call, memory)

    def wider(self, factor: float) -> Policy:
        """Return the oracle of the wider policy."""
        return replace(self, policy=self.policy.wider(factor))

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return a packed mask, or a tile map where the policy makes one."""
        return shaped(self.policy, call, memory, Exact())


class Exact(Chooser):
    """Chooses by dense weight, tiles by the sum of it."""

    def keys(self, call: AttentionCall, heads: Tensor, start: int, stop: int) -> Tensor:
        """Return the scores of some rows."""
        del heads
        return call.scores(start, stop)

    def tiles(self, blocks: Blocks, heads: Tensor) -> Tensor:
        """Return the dense mass of each tile."""
        del heads
        call = blocks.call
        mass = torch.zeros(call.heads, blocks.n_q, blocks.n_k, dtype=call.accumulate, device=call.device)
        for start, stop in call.row_blocks():
            weights = log_weights(call, start, stop)[0].exp()
            mass.index_add_(1, blocks.query_block[start:stop], blocks.summed_keys(weights))
        return mass


POLICY = OracleOf
