"""MInference's Tri-shape: an A-shape whose last rows attend to everything."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Band, Selection, Tiles, Union


@dataclass(frozen=True)
class TriShape(Policy):
    """Keeps `{k: k < sink} + {k: q - k < window}`, and everything in the last `last` queries of the prompt."""

    sink: int = 128
    window: int = 3968
    last: int = 100
    phase: str = field(default="prefill", kw_only=True)

    name: ClassVar[str] = "tri_shape"
    budget: ClassVar[tuple[str, ...]] = ("window",)
    source: ClassVar[str] = "MInference's Tri-shape, arXiv:2412.10319 (SCBench); microsoft/MInference fb56c91"
    short_input: ClassVar[str] = "dense while there are at most `window` keys besides the last rows"
    card: ClassVar[str] = (
        "Static, the same for all heads; the dense rows are those that read the question and begin the answer, which "
        "is why it and a_shape are to be reported apart. Prefill only, decode is dense; told to act in both, a decode "
        "step is a last row and stays dense. Of a prompt in chunks the last rows of each chunk are dense, as in the "
        "authors' code. Defaults keep everything below about 4,100 tokens. TriangleMix is this in the upper half of "
        "the layers alone (sink 8, window 512, last 128 from layer 16 on)."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.sink >= 0, f"sink is 0 or more, not {self.sink}")
        self.require(self.window >= 1, f"window is 1 or more, not {self.window}")
        self.require(self.last >= 0, f"last is 0 or more, not {self.last}")

    @property
    def reads_tensors(self) -> bool:
        """Positions alone decide."""
        return False

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return the band with its sink columns, and a map of single rows."""
        del memory
        band = Band(self.sink, self.window)
        if self.last == 0:
            return band
        ends = call.query_positions.amax(-1, keepdim=True)
        first = int(call.query_positions[call.query_positions >= 0].min())
        rows = torch.arange(first, int(ends.max()) + 1, device=call.device)
        dense = rows > ends - self.last
        return Union((band, Tiles(dense[:, None, :, None], 1, int(call.key_positions.max()) + 1, first)))


POLICY = TriShape
