"""XAttention: blocks ranked by the sums along their antidiagonals, as many as reach a share of the row."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.parts.antidiagonal import antidiagonal_mass
from sparselens.kernels.parts.assemble import tiles_of
from sparselens.kernels.parts.block import Blocks
from sparselens.kernels.parts.budget import top_p
from sparselens.kernels.parts.odds import widened
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Selection


@dataclass(frozen=True)
class XAttention(Policy):
    """Keeps, per query block of `block` rows, key block 0, the diagonal, and the best others up to a share of the mass.

    The mass of a block is estimated from the antidiagonals of its tiles of `stride` by `stride`, scores divided by
    `sqrt(d) * stride * norm` before the softmax. Others are added, by mass, until the kept blocks hold `threshold` of
    the row's mass: the one that crosses it is kept, and the forced two count.
    """

    threshold: float = 0.9
    stride: int = 8
    norm: float = 1.0
    block: int = 128
    phase: str = field(default="prefill", kw_only=True)

    name: ClassVar[str] = "x_attention"
    lookahead: ClassVar[bool] = True
    source: ClassVar[str] = "XAttention, arXiv:2503.16428; mit-han-lab/x-attention e379887"
    short_input: ClassVar[str] = "none"
    card: ClassVar[str] = (
        "Prefill only. The division by the stride lies inside the softmax: it is a temperature, and flattens the row. "
        "Rows whose first and diagonal block hold the threshold keep these alone, whatever keep_sink and keep_recent "
        "say in the authors' code. threshold 0.9 and stride 8 or 16 are the authors' evaluations (0.8 the function's "
        "default); they also have tables of a threshold per head of Llama-3.1, which are not here. Their PyTorch path "
        "(not the Triton one) masks all earlier chunks where the prompt is a multiple of the chunk. Blocks are "
        "estimated from all rows of a query block: a row's keys depend on later rows of its block. Per query head."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 <= self.threshold <= 1, f"threshold lies in 0 … 1, not {self.threshold}")
        self.require(self.norm > 0, f"norm is positive, not {self.norm}")
        fits = self.stride >= 1 and self.block >= 1 and self.block % self.stride == 0
        self.require(fits, f"stride divides block, which {self.stride} does not divide {self.block}")

    def wider(self, factor: float) -> Policy:
        """Return the policy with the odds of `threshold` times `factor`."""
        return replace(self, threshold=widened(self.threshold, factor))

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return the block map of each head."""
        del memory
        return tiles_of(call, self.block, self.block, self._choose)

    def _choose(self, blocks: Blocks) -> Tensor:
        """Return the kept blocks of one sequence: bool `[heads, n_q, n_k]`; all at a threshold of 1."""
        if self.threshold >= 1:
            return blocks.reach[None]
        mass = antidiagonal_mass(blocks, self.stride, self.norm)
        forced = blocks.sink() | blocks.diagonal
        missing = self.threshold * mass.sum(-1, keepdim=True) - (mass * forced).sum(-1, keepdim=True)
        others = top_p(mass, 1.0, "inclusive", blocks.reach & ~forced, total=missing)
        return forced | (others & (missing > 0))


POLICY = XAttention
