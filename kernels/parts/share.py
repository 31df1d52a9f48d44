"""How query heads of a group share a choice: each by itself, or by the sum, mean or maximum of their scores."""

from __future__ import annotations

from torch import Tensor

SHARING = ("head", "sum", "mean", "max")


def shared(scores: Tensor, group: int, how: str) -> Tensor:
    """Return scores `[heads, …]` reduced over each group of `group` heads and repeated for all its members.

    `how` `head` leaves them as they are. Raises `ValueError` on another word than those of `SHARING`.
    """
    if how not in SHARING:
        raise ValueError(f"heads share by one of {', '.join(SHARING)}, not {how!r}")
    if how == "head" or group == 1:
        return scores
    grouped = scores.view(-1, group, *scores.shape[1:])
    reduced = grouped.amax(1) if how == "max" else grouped.sum(1) if how == "sum" else grouped.mean(1)
    return reduced.repeat_interleave(group, 0)
