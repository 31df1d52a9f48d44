"""A figure that stands alone: an SVG with title and caption, the rows it draws, PNG and HTML of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from sparselens.dashboards.export.svg import png

FORMS = ("svg", "png")


@dataclass(frozen=True)
class Figure:
    """What a cell of a notebook shows, and what is written to a file. Nothing in it is loaded from elsewhere."""

    title: str
    caption: str
    svg: str = field(repr=False)
    rows: list[dict[str, Any]] = field(repr=False)

    def df(self) -> pd.DataFrame:
        """Return the numbers that are drawn, as a data frame."""
        return pd.DataFrame(self.rows)

    def png(self, scale: float = 2.0) -> bytes:
        """Return the figure as PNG, `scale` pixels a unit of the SVG."""
        return png(self.svg, scale)

    def save(self, path: str | Path, *, scale: float = 2.0) -> Path:
        """Write the figure; the file's ending says whether as SVG or PNG. Returns the path.

        Raises ValueError for another ending.
        """
        file = Path(path)
        file.write_bytes(self.written(file.suffix.removeprefix(".").lower(), scale))
        return file

    def written(self, form: str, scale: float = 2.0) -> bytes:
        """Return the bytes of the figure as `svg` or `png`; ValueError for another form."""
        if form not in FORMS:
            raise ValueError(f"figures are written as {' or '.join(FORMS)}, not {form[:20]!r}")
        return self.svg.encode() if form == "svg" else self.png(scale)

    def _repr_html_(self) -> str:
        return f'<div style="overflow-x:auto;max-width:100%">{self.svg}</div>'

    def __str__(self) -> str:
        return f"{self.title}\n{self.caption}"
