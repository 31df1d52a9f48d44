"""The colour language: one sequential scale for "how much", one diverging scale for B − A.

Both are monotonic in lightness (sequential) or away from a neutral centre (diverging, blue against
orange), so they survive colour blindness and grey printing. There is one version for light paper and one
for dark; HTML cells take them as CSS variables, images as palettes, from the same stops.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Bytes: TypeAlias = NDArray[np.uint8]
Floats: TypeAlias = NDArray[np.float64]

LEVELS = 32
STOPS: dict[str, dict[str, tuple[str, ...]]] = {
    "light": {
        "seq": ("#f6f7f9", "#c9daee", "#7fa9d8", "#3a6fb5", "#1b3f7d", "#0d1f45"),
        "div": ("#12427f", "#3f7fc4", "#a9c8ea", "#f6f6f5", "#f6c59a", "#dd7a2a", "#8f3d06"),
    },
    "dark": {
        "seq": ("#191c22", "#1f3355", "#2b5a97", "#4b8bd0", "#94c2ee", "#eaf5ff"),
        "div": ("#a5d0ff", "#4c93e0", "#24466f", "#1e2127", "#6b4220", "#d97f35", "#ffd0a3"),
    },
}
# sRGB -> LMS -> OKLab, Björn Ottosson 2020.
_TO_LMS = np.array(
    [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
     [0.0883024619, 0.2817188376, 0.6299787005]]
)  # fmt: skip
_TO_LAB = np.array(
    [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
     [0.0259040371, 0.7827717662, -0.8086757660]]
)  # fmt: skip


def _rgb(stop: str) -> Floats:
    return np.array([int(stop[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.float64) / 255


def _to_lab(rgb: Floats) -> Floats:
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return np.asarray(np.cbrt(linear @ _TO_LMS.T) @ _TO_LAB.T)


def _from_lab(lab: Floats) -> Floats:
    linear = ((lab @ np.linalg.inv(_TO_LAB).T) ** 3) @ np.linalg.inv(_TO_LMS).T
    linear = np.clip(linear, 0, 1)
    return np.asarray(np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055))


def palette(kind: str, theme: str, levels: int = 256) -> Bytes:
    """`[levels, 3]` colours of the scale `seq` or `div` for `light` or `dark`, interpolated in OKLab."""
    if theme not in STOPS or kind not in STOPS[theme]:
        raise ValueError(f"no palette {kind!r} for {theme!r}; kinds are seq, div; themes are light, dark")
    stops = np.stack([_to_lab(_rgb(stop)) for stop in STOPS[theme][kind]])
    at = np.linspace(0, len(stops) - 1, levels)
    lab = np.stack([np.interp(at, np.arange(len(stops)), stops[:, i]) for i in range(3)], axis=1)
    return np.asarray(np.rint(_from_lab(lab) * 255), dtype=np.uint8)


def variables(theme: str) -> str:
    """CSS custom properties of a theme: `--seq-0 … --seq-32`, `--div-0 … --div-32`, and `--on-…` for text on each."""
    return "".join(
        f"--{kind}-{level}:#{red:02x}{green:02x}{blue:02x};--on-{kind}-{level}:{ink((red, green, blue))};"
        for kind in ("seq", "div")
        for level, (red, green, blue) in enumerate(palette(kind, theme, LEVELS + 1).tolist())
    )


def luminance(colour: tuple[int, int, int]) -> float:
    """Relative luminance of an sRGB colour, 0 to 1 (WCAG 2.1)."""
    part = np.array(colour, dtype=np.float64) / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def contrast(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    """Contrast ratio of two sRGB colours, 1 to 21 (WCAG 2.1); text is read from 4.5 on."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def ink(paper: tuple[int, int, int]) -> str:
    """Black or white, whichever is read better on a colour; one of the two has a contrast of 4.58 at least."""
    return "#fff" if contrast(paper, (255, 255, 255)) > contrast(paper, (0, 0, 0)) else "#000"


def level(value: float | None, low: float, high: float) -> int | None:
    """Which of the `LEVELS + 1` steps a value takes between low and high; None stays None."""
    if value is None or math.isnan(value):
        return None
    if high <= low:
        return 0
    return round(LEVELS * min(max((value - low) / (high - low), 0.0), 1.0))
