"""Sink tokens and a window: the shape of StreamingLLM's cache, as a mask at original positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Band, Selection


@dataclass(frozen=True)
class AShape(Policy):
    """Keeps `{k: k < sink} + {k: q - k < window}`, token-exact, original positions."""

    sink: int = 4
    window: int = 128

    name: ClassVar[str] = "a_shape"
    budget: ClassVar[tuple[str, ...]] = ("window",)
    source: ClassVar[str] = "MInference's A-shape, arXiv:2407.02490"
    short_input: ClassVar[str] = "dense up to n_local (3,968) keys"
    card: ClassVar[str] = (
        "Static, the same for all heads. MInference's baselines use sink 128, window 3968 and are dense up "
        "to 3,968 keys. Not StreamingLLM (arXiv:2309.17453): that re-numbers positions inside its cache; the "
        "two agree only while the text fits the window."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.sink >= 0, f"sink is 0 or more, not {self.sink}")
        self.require(self.window >= 1, f"window is 1 or more, not {self.window}")

    @property
    def reads_tensors(self) -> bool:
        """Positions alone decide."""
        return False

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return the band with its sink columns."""
        del call, memory
        return Band(self.sink, self.window)


POLICY = AShape
