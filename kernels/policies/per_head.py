"""A policy for most heads, and some heads kept dense."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.head import by_layer, parse_head
from sparselens.kernels.policies.dense import Dense
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Everything, Mixture, Selection


@dataclass(frozen=True)
class PerHead(Policy):
    """Keeps everything in the heads `full` (names as `L18H6`) and what `default` keeps in all others."""

    default: Policy = field(default_factory=Dense)
    full: tuple[str, ...] = ()

    name: ClassVar[str] = "per_head"
    source: ClassVar[str] = "retrieval heads kept dense, as in DuoAttention, arXiv:2410.10819"
    evidence: ClassVar[str] = "reference"
    card: ClassVar[str] = (
        "Query heads, counted from 0. The default's own phase and dense_below hold for its heads. "
        "DuoAttention decides per key-value head; name the whole group for that."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for head in self.full:
            parse_head(head)

    @property
    def lookahead(self) -> bool:  # type: ignore[override]
        """As the default."""
        return self.default.lookahead

    @property
    def off_label(self) -> bool:  # type: ignore[override]
        """As the default."""
        return self.default.off_label

    @property
    def reads_tensors(self) -> bool:
        """As the default."""
        return self.default.reads_tensors

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return the mixture of this layer; raises `ValueError` on a head the layer does not have."""
        rest = self.default.choose(call, memory)
        full = self.heads_of(call.layer)
        self.require(all(head < call.heads for head in full), f"layer {call.layer} has {call.heads} heads")
        if not full or isinstance(rest, Everything):
            return rest
        others = tuple(head for head in range(call.heads) if head not in full)
        if not others:
            return Everything()
        return Mixture(
            [(others, rest.of_heads(torch.tensor(others, device=call.device))), (full, Everything())]
        )

    def heads_of(self, layer: int) -> tuple[int, ...]:
        """Return the heads of a layer that stay dense, ascending."""
        return by_layer(map(parse_head, self.full)).get(layer, ())


POLICY = PerHead
