"""One threshold on dense weights for all rows and heads of a layer: the bound on mean recalled mass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Bits, Selection, pack

BINS = 4096
FLOOR = -40.0  # ln of the smallest weight told apart from nothing


@dataclass(frozen=True)
class OracleMass(Policy):
    """Keeps the pairs whose dense weight reaches a threshold, one for all rows and heads of a layer.

    Given `density`: the largest such set of at most that share of the allowed pairs. Given `mass` (then
    `density` does not matter): the smallest such set that recalls at least that mean mass. Each sequence has
    its own threshold. A row's largest key is kept in any case.
    """

    density: float = 0.1
    mass: float | None = None

    name: ClassVar[str] = "oracle_mass"
    budget: ClassVar[tuple[str, ...]] = ("density",)
    lookahead: ClassVar[bool] = True
    source: ClassVar[str] = "reference: exact weights"
    evidence: ClassVar[str] = "reference"
    card: ClassVar[str] = (
        "Among all selections with that many pairs in a layer none recalls more mean mass, so it bounds "
        "every policy at that density. The threshold depends on later rows. Not a bound on what heads write. "
        "The largest key of each row is kept on top of the budget, so that no row is empty."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 < self.density <= 1, f"density lies in (0, 1], not {self.density}")
        self.require(self.mass is None or 0 < self.mass <= 1, f"mass lies in (0, 1], not {self.mass}")

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return the packed mask of the pairs at or above the threshold."""
        del memory
        threshold = torch.tensor(
            [self._threshold(call, row) for row in range(call.batch)], device=call.device
        )[:, None, None, None]
        parts = []
        for start, stop in call.row_blocks():
            weights = log_weights(call, start, stop)
            best = weights.amax(-1, keepdim=True)
            kept = (weights >= threshold) | (weights == best)
            parts.append(pack(kept & ~torch.isinf(weights)))
        return Bits(torch.cat(parts, 2), call.k_len)

    def _threshold(self, call: AttentionCall, row: int) -> float:
        """Return the log of the smallest weight kept, found in two passes of a histogram."""
        rows = float((call.allowed.counts(call.batch)[row] > 0).sum()) * call.heads
        if self.mass is None:
            target, by_mass = self.density * float(call.allowed_pairs()[row]) * call.heads, False
        else:
            target, by_mass = self.mass * rows, True

        def above(low: float, high: float) -> Tensor:
            return _tail(call, row, low, high, by_mass)

        return _search(above, target, stop_before=not by_mass)


def _search(above: Callable[[float, float], Tensor], target: float, *, stop_before: bool) -> float:
    """Return the edge whose tail is the last within `target` (`stop_before`) or the first to reach it."""
    low, high = FLOOR, 1e-3
    for _ in range(2):
        tails = above(low, high)
        fits = tails <= target if stop_before else tails < target
        if bool(fits.all()):
            return float("-inf") if low == FLOOR else low
        place = int((~fits).nonzero()[-1])  # the first bin from above whose tail is too large (large enough)
        width = (high - low) / BINS
        low, high = low + place * width, low + (place + 1) * width
    return high if stop_before else low


def _tail(call: AttentionCall, row: int, low: float, high: float, by_mass: bool) -> Tensor:
    """Return, for each of `BINS` bins of the log weight, what lies in it and above: pairs, or their mass."""
    bins = torch.zeros(BINS + 1, dtype=torch.float64, device=call.device)
    for start, stop in call.row_blocks():
        weights = log_weights(call, start, stop)[row].flatten()
        if not by_mass:
            bins[:BINS] += torch.histc(weights, BINS, low, high)
            bins[BINS] += (weights > high).sum()
            continue
        weights = weights[weights >= low]
        place = ((weights - low) * (BINS / (high - low))).long().clamp(max=BINS)
        amount = weights.double().exp() if by_mass else torch.ones_like(weights, dtype=torch.float64)
        bins.index_add_(0, place, amount)
    return bins.flip(0).cumsum(0).flip(0)[:BINS]


def log_weights(call: AttentionCall, start: int, stop: int) -> Tensor:
    """Return the log of the dense weights of some rows, `-inf` where not allowed; sink logits count."""
    scores = call.scores(start, stop)
    lse = torch.logsumexp(scores, -1, keepdim=True)
    if call.sinks is not None:
        lse = torch.logaddexp(lse, call.sinks.to(lse.dtype)[None, :, None, None])
    return scores.sub_(lse.nan_to_num(neginf=0.0))


POLICY = OracleMass
