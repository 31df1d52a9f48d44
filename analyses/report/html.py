"""A report as one HTML page: nothing is loaded, nothing runs, and no text of the trace is read as markup."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from sparselens.analyses.interval import Interval
from sparselens.analyses.report.number import interval, number
from sparselens.analyses.report.page import Cell, Grid, Page, Table, Words, measures, pieces, visible

LEVELS = 10
SHORT = 32
"""A cell of so many characters stays on one line."""
_BREAK = re.compile(r"(?<=[,;(])(?=\S)")
_LEFT, _TOP, _WIDE, _HIGH = 30, 16, 16, 11  # of a grid, in its own units


@dataclass(frozen=True)
class Bar:
    """An interval on a line from 0 to 100: its ends, its mean, and lines at the marks; what it says."""

    low: float
    mean: float
    high: float
    marks: tuple[float, ...]
    said: str


@dataclass(frozen=True)
class Square:
    """A head in a grid: where it lies, which of the `LEVELS` + 1 colours it has, what it says."""

    x: int
    y: int
    level: int
    said: str


def html(page: Page, *, whole: bool = True) -> str:
    """Return the page as HTML: a file that stands alone, or, not `whole`, a part for a notebook."""
    return str(_environment().get_template("report.html.j2").render(page=page, whole=whole))


@cache
def _environment() -> Environment:
    """The templates of this folder; everything they print is escaped, and a name they lack is an error."""
    made = Environment(
        loader=PackageLoader("sparselens.analyses.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "visible": visible,
        "pieces": pieces,
        "words": _words,
        "measures": measures,
        "bars": bars,
        "squares": squares,
    }
    made.filters["breaks"] = _BREAK.split
    made.filters["short"] = lambda cell: len(_plain(_words(cell))) <= SHORT
    made.filters |= {"number": number, "drawing": _drawing}
    made.filters["kind"] = lambda block: type(block).__name__
    return made


def _words(cell: Words | Cell) -> Words:
    return cell.words if isinstance(cell, Cell) else cell


def _plain(words: Words) -> str:
    return "".join(piece if isinstance(piece, str) else piece.text for piece in pieces(words))


def bars(table: Table) -> list[list[Bar | None]]:
    """Return the bars of a table's cells; cells of one scale have the same ends, marks within them."""
    made: list[list[Bar | None]] = [[None] * len(row) for row in table.rows]
    scales: dict[int, list[tuple[int, int, Interval]]] = {}
    for down, row in enumerate(table.rows):
        for across, cell in enumerate(row):
            if isinstance(cell, Cell) and cell.drawn is not None:
                key = {"column": across, "row": down, "table": 0}[table.scale]
                scales.setdefault(key, []).append((down, across, cell.drawn))
    for cells in scales.values():
        for (down, across, _), bar in zip(
            cells, _drawn([each[2] for each in cells], table.marks), strict=True
        ):
            made[down][across] = bar
    return made


def _drawn(found: Sequence[Interval], marks: tuple[float, ...]) -> list[Bar]:
    """Return bars on one scale that holds all intervals and marks."""
    values = np.array([[*_ends(each), each.mean] for each in found])
    low, high = min(values.min(), *marks), max(values.max(), *marks)
    width = 1.08 * (high - low) or 1.0

    def place(value: float) -> float:
        return round(float(100 * ((value - low) / width + 0.037)), 2)

    lines = tuple(map(place, marks))
    return [
        Bar(place(first), place(mean), place(last), lines, interval(each))
        for each, (first, last, mean) in zip(found, values.tolist(), strict=True)
    ]


def _ends(found: Interval) -> tuple[float, float]:
    return (found.mean, found.mean) if np.isnan(found.low) else (found.low, found.high)


def squares(grid: Grid, most: float) -> list[Square]:
    """Return the heads of a grid as squares; colours go from 0 to `most`."""
    return [
        Square(
            _LEFT + head * _WIDE,
            _TOP + layer * _HIGH,
            round(LEVELS * min(max(found.mean / most, 0.0), 1.0)) if most > 0 else 0,
            f"L{layer}H{head} {grid.unit} {interval(found)}",
        )
        for (layer, head), found in sorted(grid.values.items())
    ]


def _drawing(grid: Grid) -> dict[str, Any]:
    """Return the size of a grid's picture and where its names stand."""
    layers = [layer for layer in range(grid.n_layers) if layer % 5 == 0 or layer == grid.n_layers - 1]
    return {
        "width": _LEFT + grid.n_heads * _WIDE + 2,
        "height": _TOP + grid.n_layers * _HIGH + 2,
        "square": (_WIDE - 1, _HIGH - 1),
        "layers": [(_LEFT - 4, _TOP + layer * _HIGH + _HIGH - 2, f"L{layer}") for layer in layers],
        "heads": [(_LEFT + head * _WIDE + _WIDE / 2, _TOP - 4, f"H{head}") for head in range(grid.n_heads)],
    }
