"""The best keys for a given number per row: what no estimator with that budget can beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Bits, KeyList, Selection, pack


@dataclass(frozen=True)
class OracleTopK(Policy):
    """Keeps, in each row of each head, the `k` keys with the largest dense weight."""

    k: int = 64

    name: ClassVar[str] = "oracle_topk"
    budget: ClassVar[tuple[str, ...]] = ("k",)
    source: ClassVar[str] = "reference: exact scores"
    evidence: ClassVar[str] = "reference"
    card: ClassVar[str] = (
        "Reads every score, so it saves nothing; it bounds the mass that any rule with k keys a row can "
        "recall. Ties go to some of the tied keys."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.k >= 1, f"k is 1 or more, not {self.k}")

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return key lists, or a packed mask where that is smaller."""
        del memory
        count = min(self.k, call.k_len)
        listed = count * 32 < call.k_len
        parts = []
        for start, stop in call.row_blocks():
            best = call.scores(start, stop).topk(count, sorted=False)
            parts.append(
                _list(best.values, best.indices) if listed else _mask(best.values, best.indices, call.k_len)
            )
        joined = torch.cat(parts, 2)
        return KeyList(joined) if listed else Bits(joined, call.k_len)


def _list(scores: Tensor, index: Tensor) -> Tensor:
    return index.int().masked_fill_(torch.isinf(scores), -1)


def _mask(scores: Tensor, index: Tensor, k_len: int) -> Tensor:
    kept = torch.zeros(*index.shape[:3], k_len, dtype=torch.bool, device=index.device)
    return pack(kept.scatter_(-1, index, ~torch.isinf(scores)))


POLICY = OracleTopK
