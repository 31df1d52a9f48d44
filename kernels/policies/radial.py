"""A causal, one-dimensional port of Radial Attention: density halves each time the distance doubles."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.parts.formula import formula_tiles
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Selection


@dataclass(frozen=True)
class Radial(Policy):
    """Keeps, of the key blocks at the block distance D in band m = ⌊log2 D⌋, those with b mod 2^max(0, m − full) = 0.

    b is the absolute number of the key block. Distances below 2^(full + 1) blocks are kept whole, and so are the first
    `sink` blocks. One mask for all heads and layers.
    """

    block: int = 64
    full: int = 1
    sink: int = 1

    name: ClassVar[str] = "radial"
    budget: ClassVar[tuple[str, ...]] = ("full",)
    off_label: ClassVar[bool] = True
    source: ClassVar[str] = "after Radial Attention, arXiv:2506.19852; mit-han-lab/radial-attention 72788d4"
    card: ClassVar[str] = (
        "Static. This port is ours and not the paper's method, which thins the frames of a video in a diffusion model "
        "without causality, by distance in frames; here blocks of text are thinned by their absolute number, so that a "
        "cache could drop them. All fields are ours."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.block >= 1, f"block is 1 or more, not {self.block}")
        self.require(self.full >= 0, f"full is 0 or more, not {self.full}")
        self.require(self.sink >= 0, f"sink is 0 or more, not {self.sink}")

    def wider(self, factor: float) -> Policy:
        """Return the policy whose whole bands reach `factor` times as far, to the nearest power of two."""
        return self(full=max(0, round(self.full + math.log2(factor))))

    @property
    def reads_tensors(self) -> bool:
        """Positions alone decide."""
        return False

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return one tile map for all heads."""
        del memory
        return formula_tiles(call, self.block, self.keeps)

    def keeps(self, query: Tensor, key: Tensor) -> Tensor:
        """Return which blocks are kept, from block numbers that broadcast: bool."""
        gap = (query - key).clamp(min=1)
        band = torch.frexp(gap.double()).exponent.long() - 1
        stride = torch.ones_like(band) << (band - self.full).clamp(min=0)
        return (key % stride == 0) | (key < self.sink)


POLICY = Radial
