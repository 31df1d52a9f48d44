"""SALE: key blocks in which a 4-bit estimate finds a weight that matters beside sink and window."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.parts.assemble import tiles_of
from sparselens.kernels.parts.block import Blocks
from sparselens.kernels.parts.int4 import Int4
from sparselens.kernels.plan import Plan, read_plan
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Selection

DENSE = 1e-5  # a head with a smaller threshold keeps everything


@dataclass(frozen=True)
class Sale(Policy):
    """Keeps the first key block, a local part, and blocks with an estimated relative weight above a threshold.

    Tiles are `block_q` queries by `block_k` keys. Of the key blocks that a query block can see, all but the first are
    scanned from the oldest on, in whole segments of `segment` keys, as many as leave `local` keys or more: the rest,
    `local` to `local + segment` keys that end with the query block, is the local part. With m and l the maximum and
    the softmax sum of a row over first block and local part, exact, a scanned block is kept where
    `exp(estimate - m) / l` exceeds the head's threshold for any of the tile's pairs; the estimate is of 4 bits
    (`parts/int4.py`). The threshold is `tau`, or that of the `plan` (`sparselens calibrate sale`), by `divisor`.
    """

    plan: str = ""
    tau: float = 0.004
    divisor: float = 1.0
    local: int = 128
    segment: int = 128
    block_q: int = 64
    block_k: int = 32
    phase: str = field(default="prefill", kw_only=True)

    name: ClassVar[str] = "sale"
    budget: ClassVar[tuple[str, ...]] = ("divisor",)
    lookahead: ClassVar[bool] = True
    source: ClassVar[str] = "SALE, arXiv:2505.24179; BirdChristopher/SALE 39d380c"
    short_input: ClassVar[str] = "prompts up to 1,024 tokens are dense"
    card: ClassVar[str] = (
        "Prefill only, per query head. Thresholds per head come from a calibration; without a plan every head has "
        "tau 0.004, the value of the authors' usage example. The weight is relative to the mass of sink and window, "
        "not a probability. A threshold below 1e-5 keeps everything. This is the two-pass variant (m and l fixed), "
        "per-warp rounding (quant_mode 3). The authors' integers go through float16, here through float32; sequence "
        "means are the call's: the estimate depends on later tokens."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.tau >= 0, f"tau is 0 or more, not {self.tau}")
        self.require(self.divisor > 0, f"divisor is more than 0, not {self.divisor}")
        self.require(self.block_q >= 1, f"block_q is 1 or more, not {self.block_q}")
        self.require(
            self.block_k >= 8 and not self.block_k % 8, f"block_k is a multiple of 8, not {self.block_k}"
        )
        for name in ("local", "segment"):
            size = getattr(self, name)
            whole = size >= self.block_k and not size % self.block_k
            self.require(whole, f"{name} is a multiple of block_k ({self.block_k}), not {size}")
        self.require(
            self.local >= self.block_q, f"local holds a query block ({self.block_q}), not {self.local}"
        )

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The calibrated thresholds, if there are any."""
        return (read_plan(self.plan, self.name),) if self.plan else ()

    def wider(self, factor: float) -> Policy:
        """Return the policy with thresholds `factor` times as low."""
        return replace(self, divisor=self.divisor * factor)

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return the tiles that are kept."""
        del memory
        tau = self.thresholds(call)
        return tiles_of(
            call, self.block_q, self.block_k, lambda blocks: self.kept(blocks, self.weights(blocks), tau)
        )

    def thresholds(self, call: AttentionCall) -> Tensor:
        """Return each head's threshold in this layer: `[heads]`."""
        values = self.plans[0].content["tau"][call.layer] if self.plan else [self.tau] * call.heads
        return torch.tensor(values, dtype=call.accumulate, device=call.device) / self.divisor

    def kept(self, blocks: Blocks, weights: Tensor, tau: Tensor) -> Tensor:
        """Return the map of one sequence for its `weights` and thresholds `[heads]`: bool `[heads, n_q, n_k]`."""
        found = (weights > tau[:, None, None]) | (tau < DENSE)[:, None, None]
        return (found | ~self._scanned(blocks)) & blocks.reach

    def weights(self, blocks: Blocks) -> Tensor:
        """Return the largest estimated relative weight in each tile: `[heads, n_q, n_k]`."""
        call, rounded = blocks.call, Int4.of(blocks.call, self.block_k)
        scanned = self._scanned(blocks)
        parts = []
        for row in range(blocks.n_q):
            places = (blocks.query_block == row).nonzero()[:, 0]
            start, stop = int(places[0]), int(places[-1]) + 1
            exact = call.scores(start, stop)[0]
            outside = exact.masked_fill(scanned[row, blocks.key_block], float("-inf"))
            excess = rounded.scores(start, stop) - outside.logsumexp(-1, keepdim=True)
            parts.append(
                blocks.largest_keys(excess.masked_fill(exact == float("-inf"), float("-inf")).amax(1))
            )
        return torch.stack(parts, 1).exp()

    def _scanned(self, blocks: Blocks) -> Tensor:
        """Return the blocks that are neither first nor local: bool `[n_q, n_k]`."""
        at = torch.arange(blocks.n_k, device=blocks.call.device)
        others = blocks.newest.long().argmax(-1, keepdim=True)  # visible blocks but the first
        local, segment = self.local // self.block_k, self.segment // self.block_k
        stop = (others - local) // segment * segment
        return (at >= 1) & (at <= stop)


POLICY = Sale
