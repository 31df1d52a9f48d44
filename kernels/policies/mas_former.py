"""MASFormer: full attention in a few layers, a short span in all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Band, Everything, Selection


@dataclass(frozen=True)
class MasFormer(Policy):
    """Keeps everything in the layers `dense` (numbers from 0), and `{k < sink} ∪ {q - k < window}` in all others."""

    dense: tuple[int, ...] = (0,)
    window: int = 1024
    sink: int = 0

    name: ClassVar[str] = "mas_former"
    budget: ClassVar[tuple[str, ...]] = ("window",)
    off_label: ClassVar[bool] = True
    source: ClassVar[str] = "MASFormer, arXiv:2310.12442"
    evidence: ClassVar[str] = "abstract"
    card: ClassVar[str] = (
        "Static, the same for all heads of a layer. Which layers stay dense and how wide the others see could not be "
        "read: both defaults are ours, and so is sink, which is 0 as the paper names none. The paper trains the model "
        "on with it; without that expect a loss that the paper does not have."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            all(layer >= 0 for layer in self.dense), f"layers count from 0, not {min(self.dense, default=0)}"
        )
        self.require(self.window >= 1, f"window is 1 or more, not {self.window}")
        self.require(self.sink >= 0, f"sink is 0 or more, not {self.sink}")

    @property
    def reads_tensors(self) -> bool:
        """Positions alone decide."""
        return False

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return everything in a dense layer, else the band."""
        del memory
        return Everything() if call.layer in self.dense else Band(self.sink, self.window)


POLICY = MasFormer
