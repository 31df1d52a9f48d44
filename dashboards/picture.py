"""Cells of an attention map as a PNG: one value scale for both runs, a palette per theme."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sparselens.dashboards.colour import palette

Floats: TypeAlias = NDArray[np.float64]
DECADES = 4
NOTHING = 255  # the place in the list of colours that is transparent


@dataclass(frozen=True)
class Scale:
    """How a weight becomes a colour: `linear`, `sqrt` or `log` (four decades), from 0 or −high to high."""

    kind: str
    high: float
    diverging: bool = False

    def place(self, cells: Floats) -> Floats:
        """Cells as places in 0…1 on the colour bar; 0.5 is no difference on a diverging scale."""
        size = np.abs(cells) / self.high if self.high > 0 else np.zeros_like(cells)
        size = np.clip(size, 0, 1)
        if self.kind == "sqrt":
            size = np.sqrt(size)
        elif self.kind == "log":
            size = np.clip(1 + np.log10(np.maximum(size, 10.0 ** -(DECADES + 1))) / DECADES, 0, 1)
        elif self.kind != "linear":
            raise ValueError(f"no scale {self.kind!r}; scales are linear, sqrt, log")
        return 0.5 + np.sign(cells) * size / 2 if self.diverging else size

    def value(self, place: float) -> float:
        """The weight drawn at a place of the colour bar, the inverse of `place`."""
        size = abs(2 * place - 1) if self.diverging else place
        sign = -1.0 if self.diverging and place < 0.5 else 1.0
        if self.kind == "sqrt":
            size = size**2
        elif self.kind == "log":
            size = 10.0 ** (DECADES * (size - 1)) if size > 0 else 0.0
        return sign * size * self.high


def png(cells: Floats, scale: Scale, theme: str) -> bytes:
    """Bytes of a PNG, one pixel a cell; `cells` is `[rows, columns]`, NaN is transparent (nothing there).

    A pixel is one byte, a place in a list of `NOTHING` colours; that takes half to a third of four bytes a pixel.
    """
    empty = np.isnan(cells)
    index = np.rint(scale.place(np.where(empty, 0.0, cells)) * (NOTHING - 1)).astype(np.uint8)
    index[empty] = NOTHING
    colours = palette("div" if scale.diverging else "seq", theme, NOTHING)
    picture = Image.frombytes("P", (index.shape[1], index.shape[0]), index.tobytes())
    picture.putpalette([*colours.ravel().tolist(), 0, 0, 0])
    out = BytesIO()
    picture.save(out, "PNG", transparency=NOTHING)
    return out.getvalue()
