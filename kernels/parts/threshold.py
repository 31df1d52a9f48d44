"""How a threshold that is a share of mass is made wider: by the share that it leaves out."""

from __future__ import annotations


def wider_share(share: float, factor: float) -> float:
    """Return the share whose rest is `(1 - share) ** factor`: nearer to 1 above a factor of 1, exactly 1 in the end."""
    return 1.0 - (1.0 - share) ** factor
