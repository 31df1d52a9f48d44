"""Numbers as a report writes them."""

from __future__ import annotations

import math

from sparselens.analyses.interval import Interval

NONE = "–"


def number(value: float | None, *, sign: bool = False) -> str:
    """Return three digits that matter, a true minus sign, `–` for none; `sign` writes the plus too."""
    if value is None or math.isnan(value):
        return NONE
    return f"{value:{'+' if sign else ''}.3g}".replace("-", "−")


def share(value: float | None) -> str:
    """Return a share as a percentage with one decimal."""
    return NONE if value is None or math.isnan(value) else f"{value * 100:.1f} %".replace("-", "−")


def interval(found: Interval, *, sign: bool = False, shares: bool = False) -> str:
    """Return a mean with its 95 % interval, where it has one."""
    if not found.n and math.isnan(found.mean):
        return NONE

    def written(value: float) -> str:
        return share(value).removesuffix(" %") if shares else number(value, sign=sign)

    text = written(found.mean)
    if not math.isnan(found.low):
        text += f" [{written(found.low)}, {written(found.high)}]"
    return f"{text} %" if shares else text


def count(mean: float, n: int) -> str:
    """Return a share of `n` things as `3 of 4`."""
    return f"{mean * n:.0f} of {n}"


def over(n: int, n_clusters: int, what: str = "prompts") -> str:
    """Return what a mean is over: `4 prompts in 3 clusters`."""
    return (
        f"{n} {what if n != 1 else what.removesuffix('s')} in {n_clusters} cluster{'s' * (n_clusters != 1)}"
    )
