"""The two factorised patterns of Sparse Transformers: strided, and fixed spans with summary columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.parts.formula import formula_tiles
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Band, Mixture, Selection, Stripes, Union

PATTERNS = ("strided", "fixed")


@dataclass(frozen=True)
class SparseTransformer(Policy):
    """Keeps a near part and a far part. Pattern `strided`: `q − k < stride`, and `(q − k) mod stride = 0`.

    Pattern `fixed`: the query's own span `⌊k / stride⌋ = ⌊q / stride⌋`, and of every span the summary columns
    `stride − (j + 1) · summary ≤ k mod stride < stride − j · summary` with j = head mod `turns`. Each head keeps both
    parts; with `apart` even heads keep the near part and odd heads the far part. Itself is always kept.
    """

    stride: int = 128
    pattern: str = "strided"
    summary: int = 8
    turns: int = 1
    apart: bool = False

    name: ClassVar[str] = "sparse_transformer"
    off_label: ClassVar[bool] = True
    source: ClassVar[str] = "Sparse Transformers, arXiv:1904.10509; openai/sparse_attention 199cdd3"
    card: ClassVar[str] = (
        "Static. The paper takes a stride near the root of the length (128 to 256), a summary of 8 to 32. The authors' "
        "code runs the fixed pattern in blocks of 32 with turns=4; here both are exact to the token. A window is "
        "stride long as in their code (the paper's formula has stride + 1). The paper trains the model with it."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.stride >= 1, f"stride is 1 or more, not {self.stride}")
        self.require(
            self.pattern in PATTERNS, f"pattern is one of {', '.join(PATTERNS)}, not {self.pattern!r}"
        )
        self.require(self.turns >= 1 and self.summary >= 1, "turns and summary are 1 or more")
        if self.pattern == "fixed":
            self.require(self.summary * self.turns <= self.stride, "summary * turns is at most stride")

    @property
    def reads_tensors(self) -> bool:
        """Positions alone decide."""
        return False

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return the near and the far part, in union or in turn of heads."""
        del memory
        size = int(max(call.query_positions.max(), call.key_positions.max())) + 1
        near, far = self._strided(call, size) if self.pattern == "strided" else self._fixed(call, size)
        if not self.apart:
            return Union((near, far))
        even, odd = (torch.arange(first, call.heads, 2, device=call.device) for first in (0, 1))
        parts = [(heads, part) for heads, part in ((even, near), (odd, far)) if len(heads)]
        return Mixture([(tuple(heads.tolist()), part.of_heads(heads)) for heads, part in parts])

    def _strided(self, call: AttentionCall, size: int) -> tuple[Selection, Selection]:
        distances = torch.arange(0, size, self.stride, device=call.device)
        return Band(0, self.stride), Stripes(_none(call), distances[None, None])

    def _fixed(self, call: AttentionCall, size: int) -> tuple[Selection, Selection]:
        position = torch.arange(size, device=call.device)
        turn = torch.arange(call.heads if self.turns > 1 else 1, device=call.device)[:, None] % self.turns
        before = self.stride - 1 - position % self.stride  # places to the end of the span
        columns = position.where(before // self.summary == turn, -1)
        near = formula_tiles(call, self.stride, lambda query, key: query == key)
        itself = torch.zeros(1, 1, 1, dtype=torch.int64, device=call.device)
        return near, Stripes(columns[None], itself)


def _none(call: AttentionCall) -> torch.Tensor:
    return torch.full((1, 1, 1), -1, device=call.device)


POLICY = SparseTransformer
