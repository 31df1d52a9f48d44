"""TidalDecode: two layers look at everything and choose keys; the layers after them read only those."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.parts.assemble import bits_of
from sparselens.kernels.parts.budget import top_k
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Everything, Selection

_CHOSEN = "tidal_decode.chosen"


@dataclass(frozen=True)
class TidalDecode(Policy):
    """Keeps, in each query head, the `k` keys that scored highest in the last layer that chose.

    Layers before `start` keep everything. The layers `start` and `correction` choose, and attend to everything
    themselves (`full`), or to what they choose. The query's own key is forced and counts. A choice is for one token.
    """

    k: int = 256
    start: int = 2
    correction: int = 9
    full: bool = True
    phase: str = field(default="decode", kw_only=True)

    name: ClassVar[str] = "tidal_decode"
    budget: ClassVar[tuple[str, ...]] = ("k",)
    source: ClassVar[str] = "TidalDecode, arXiv:2410.05076; DerrickYLJ/TidalDecode d67a1bd"
    card: ClassVar[str] = (
        "Decode; the prefill is dense. Layers share a choice, so its later layers depend on what an earlier one left."
        " The authors take correction 13 for Llama-3-8B, 9 otherwise, and k 128 to 4,096; they force no key, here the"
        " query's own is forced and counts. Keys are chosen per query head: a group reads the union."
    )
    short_input: ClassVar[str] = "dense up to `k` keys"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.k >= 1, f"k is 1 or more, not {self.k}")
        self.require(
            0 <= self.start < self.correction,
            f"start lies before correction, from 0; not {self.start} and {self.correction}",
        )

    @property
    def reads_layers(self) -> bool:
        """A layer reads what the last choosing layer left."""
        return True

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return what was chosen; raises `RuntimeError` where the choosing layer did not run before."""
        if call.layer < self.start:
            return Everything()
        if call.layer in (self.start, self.correction):
            memory.set(call.layer, _CHOSEN, {row: self._choose(one) for row, _, _, one in call.sequences()})
            if self.full:
                return Everything()
        source = self.correction if call.layer >= self.correction else self.start
        chosen: dict[int, Tensor] | None = memory.get(source, _CHOSEN)
        if chosen is None:
            raise RuntimeError(
                f"layer {call.layer} reads what layer {source} chose, which did not run before it"
            )
        rows = iter([chosen[row] for row, _, _, _ in call.sequences()])
        return bits_of(call, lambda one: next(rows)[..., one.key_positions[0]])

    def _choose(self, call: AttentionCall) -> Tensor:
        """Return the chosen keys by absolute position: bool `[heads, q_len, last position + 1]`."""
        position = call.key_positions[0]
        size = int(position[-1]) + 1
        chosen = torch.zeros(call.heads, call.q_len, size, dtype=torch.bool, device=call.device)
        for start, stop in call.row_blocks():
            own = call.query_positions[0, start:stop, None] == position
            scores = call.scores(start, stop)[0].masked_fill(own, torch.inf)
            chosen[:, start:stop, position] = top_k(scores, self.k, call.allowed.rows(start, stop)[0])
        return chosen


POLICY = TidalDecode
