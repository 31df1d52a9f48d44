"""Thresholds that are shares of a mass, made wider or narrower without leaving 0 … 1."""

from __future__ import annotations


def widened(share: float, factor: float) -> float:
    """Return the share whose odds, share ÷ (1 - share), are `factor` times as high.

    1 is reached as the factor grows, 0 as it vanishes; two steps in a row are one by the product of the factors.
    """
    return share * factor / (1 - share + share * factor)
