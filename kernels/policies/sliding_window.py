"""A window of the last keys, and nothing before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Band, Selection


@dataclass(frozen=True)
class SlidingWindow(Policy):
    """Keeps `{k: q - k < window}`; the window counts the query itself, so 1 is self only."""

    window: int = 128

    name: ClassVar[str] = "sliding_window"
    budget: ClassVar[tuple[str, ...]] = ("window",)
    source: ClassVar[str] = "Longformer, arXiv:2004.05150; Mistral, arXiv:2310.06825"
    card: ClassVar[str] = (
        "Static, the same for all heads. Without the first tokens pretrained models lose their sinks and "
        "collapse (StreamingLLM, arXiv:2309.17453). A window as long as the text is exactly dense."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.window >= 1, f"window is 1 or more, not {self.window}")

    @property
    def reads_tensors(self) -> bool:
        """Positions alone decide."""
        return False

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return the band."""
        del call, memory
        return Band(0, self.window)


POLICY = SlidingWindow
