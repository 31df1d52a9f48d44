"""PowerAttention: blocks at distances that are powers of two, so that layers reach twice as far each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.parts.formula import formula_tiles
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Selection


@dataclass(frozen=True)
class PowerAttention(Policy):
    """Keeps a block at the block distance D = ⌊q / block⌋ − ⌊k / block⌋ if D < local, or D is a power of two.

    The first `sink` blocks are kept too. One mask for all heads and layers. Distances are counted in blocks: in tokens
    the reach of stacked layers would have holes.
    """

    block: int = 64
    local: int = 4
    sink: int = 1

    name: ClassVar[str] = "power_attention"
    budget: ClassVar[tuple[str, ...]] = ("local",)
    off_label: ClassVar[bool] = True
    source: ClassVar[str] = "PowerAttention, arXiv:2503.03588"
    evidence: ClassVar[str] = "abstract"
    card: ClassVar[str] = (
        "Static. Known from the abstract and summaries: block size, local window and sink are ours. A position reaches "
        "every earlier one through ceil(log2(blocks)) layers, but only if all layers and heads run this policy. The "
        "paper trains the model with it."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.block >= 1, f"block is 1 or more, not {self.block}")
        self.require(
            self.local >= 1, f"local is 1 or more, not {self.local}: a row always keeps its own block"
        )
        self.require(self.sink >= 0, f"sink is 0 or more, not {self.sink}")

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
        gap = query - key
        return (gap < self.local) | ((gap & (gap - 1)) == 0) | (key < self.sink)


POLICY = PowerAttention
