"""A dilated window: neighborhood attention in one dimension, causal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Selection, Stripes


@dataclass(frozen=True)
class Dilated(Policy):
    """Keeps `{k: q − k = j · dilation, 0 ≤ j < window}`: `window` keys with gaps; itself is the first."""

    window: int = 128
    dilation: int = 2

    name: ClassVar[str] = "dilated"
    budget: ClassVar[tuple[str, ...]] = ("window",)
    off_label: ClassVar[bool] = True
    source: ClassVar[str] = "Dilated Neighborhood Attention, arXiv:2209.15001; SHI-Labs/NATTEN"
    evidence: ClassVar[str] = "abstract"
    card: ClassVar[str] = (
        "Static, the same for all heads. dilation=1 is sliding_window. Without causality neighborhood attention shifts "
        "its window at the edges so that it stays full; the causal form is shorter there, as here. A row reaches only "
        "positions of its own residue, also through any number of layers: models alternate dilations, one policy here "
        "has one. Trained with it, on images."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.window >= 1, f"window is 1 or more, not {self.window}")
        self.require(self.dilation >= 1, f"dilation is 1 or more, not {self.dilation}")

    @property
    def reads_tensors(self) -> bool:
        """Positions alone decide."""
        return False

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return the diagonals."""
        del memory
        size = int(max(call.query_positions.max(), call.key_positions.max())) + 1
        distances = torch.arange(0, min(self.window * self.dilation, size), self.dilation, device=call.device)
        return Stripes(torch.full((1, 1, 1), -1, device=call.device), distances[None, None])


POLICY = Dilated
