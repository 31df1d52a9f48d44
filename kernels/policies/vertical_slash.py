"""MInference's vertical-slash pattern: key columns and diagonals estimated from the last queries."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.parts.assemble import stacked
from sparselens.kernels.parts.probe import by_distance, probed
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Selection, Stripes


@dataclass(frozen=True)
class VerticalSlash(Policy):
    """Keeps, per head, the `vertical` best key columns and the `slash` best diagonals.

    The last `last_q` queries attend densely to all keys; a column scores the sum of its weights, a distance
    the sum along its diagonal. The first `sink` columns and the last `recent` distances are forced and count
    in the budget. `v = min(N, max(vertical, min_vertical))`, `s = min(N, max(slash, min_slash))`. `tile`: 0
    keeps the diagonals token-exact, 64 what the authors' kernel loads for them (the 64-wide key range of each
    64 rows).
    """

    vertical: int = 1000
    slash: int = 6096
    last_q: int = 64
    sink: int = 30
    recent: int = 100
    min_vertical: int = 30
    min_slash: int = 50
    tile: int = 64
    phase: str = field(default="prefill", kw_only=True)

    name: ClassVar[str] = "vertical_slash"
    budget: ClassVar[tuple[str, ...]] = ("vertical", "slash")
    lookahead: ClassVar[bool] = True
    source: ClassVar[str] = "MInference, arXiv:2407.02490; microsoft/MInference fb56c91"
    short_input: ClassVar[str] = (
        "everything is kept while v and s reach N: below about 6,100 tokens at the defaults"
    )
    card: ClassVar[str] = (
        "Estimated online, per query head, from the last 64 queries: the selection knows the end of the "
        "prompt. Prefill only, decode is dense. The defaults keep everything below about 6,100 tokens. The "
        "authors choose the budgets per head in a search; here they are fields (per_head mixes policies). "
        "Scores use the model's own scale, softcap and window, the authors' 1/sqrt(d) and causality."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("vertical", "slash", "sink", "recent", "min_vertical", "min_slash", "tile"):
            self.require(getattr(self, name) >= 0, f"{name} is 0 or more, not {getattr(self, name)}")
        self.require(self.last_q >= 1, f"last_q is 1 or more, not {self.last_q}")
        self.require(self.recent >= 1, "recent is 1 or more: a row always keeps itself")

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return the stripes of each head; distances hold 0, so that no row is empty."""
        del memory
        columns = [torch.full((call.heads, 0), -1, device=call.device)] * call.batch
        distances = [torch.zeros(call.heads, 1, dtype=torch.int64, device=call.device)] * call.batch
        for row, _, _, one in call.sequences():
            start, size = int(one.key_positions[0, 0]), int(one.query_positions[0, -1]) + 1
            weights = probed(one, min(self.last_q, one.q_len))
            by_key, diagonals = weights.sum(1), by_distance(one, weights)
            by_key[:, one.key_positions[0] < self.sink] = float("inf")
            diagonals[:, : self.recent] = float("inf")
            count = min(one.k_len, max(self.vertical, self.min_vertical))
            columns[row] = by_key.topk(count).indices + start
            distances[row] = diagonals.topk(min(size, max(self.slash, self.min_slash))).indices
        return Stripes(stacked(columns), stacked(distances), self.tile or None)


POLICY = VerticalSlash
