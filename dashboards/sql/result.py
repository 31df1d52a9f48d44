"""What a query gave: a table, a chart of two numeric columns, or the layer × head grid of one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from sparselens.analyses.plot import CHOSEN, DOT, LOOK
from sparselens.dashboards.colour import level
from sparselens.dashboards.query import records
from sparselens.dashboards.verdict import number

LONGEST = 4_000  # characters of a value that are shown
MOST_LAYERS, MOST_HEADS = 256, 256  # of a grid
HEAD = ("layer", "head")


def shown(value: Any) -> Any:
    """A value as the browser gets it: numbers as they are, everything else as a text of limited length."""
    if isinstance(value, bytes | bytearray):
        return f"{len(value)} bytes"
    return value if isinstance(value, int | float | bool | None) else str(value)[:LONGEST]


def result_figure(frame: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Column definitions and rows of a result; `layer, head` columns bring a column that opens the head."""
    names = [str(name) for name in frame.columns]
    rows = [{f"c{i}": shown(value) for i, value in enumerate(row)} for row in _rows(frame)]
    columns: list[dict[str, Any]] = [
        {"field": f"c{i}", "headerName": name, "cellRenderer": "Plain", "minWidth": 90,
         "tooltipField": f"c{i}", **({"type": "rightAligned"} if frame.dtypes.iloc[i].kind in "iuf" else {})}
        for i, name in enumerate(names)
    ]  # fmt: skip
    if has_heads(frame):
        at, which = names.index("layer"), names.index("head")
        for row in rows:
            row["layer"], row["head"] = row[f"c{at}"], row[f"c{which}"]
        columns.insert(0, {"headerName": "open", "cellRenderer": "HeadLink", "width": 80, "pinned": "left"})
    return columns, rows


def _rows(frame: Any) -> list[list[Any]]:
    """Rows as lists, also of columns that share a name."""
    renamed = frame.set_axis([f"c{i}" for i in range(frame.shape[1])], axis=1)
    return [list(row.values()) for row in records(renamed)]


def has_heads(frame: Any) -> bool:
    """Whether the rows are about heads: one `layer` and one `head` column of whole numbers."""
    names = [str(name) for name in frame.columns]
    return all(names.count(name) == 1 and frame[name].dtype.kind in "iu" for name in HEAD)


def numeric(frame: Any) -> list[str]:
    """Names of the columns that can be an axis."""
    names = [str(name) for name in frame.columns]
    return [
        name
        for name, dtype in zip(names, frame.dtypes, strict=True)
        if dtype.kind in "iuf" and names.count(name) == 1
    ]


def axes(frame: Any, x: str, y: str) -> tuple[str, str]:
    """The columns to draw: as asked if they are there, else the first numeric ones that do not name the head."""
    there = numeric(frame)
    order = [name for name in there if name not in HEAD] + [name for name in there if name in HEAD]
    second = y if y in there else next((name for name in order if name != x), "")
    first = x if x in there else next((name for name in order if name != second), second)
    return first, second


def chart_figure(frame: Any, x: str, y: str) -> go.Figure:
    """The rows as points over two of their columns; the other columns of a row appear under the pointer."""
    rows = records(frame)
    made = go.Figure(
        go.Scatter(
            x=[row[x] for row in rows],
            y=[row[y] for row in rows],
            mode="markers",
            marker={"size": 7, "color": DOT, "opacity": 0.7},
            customdata=[_plain(row) for row in rows],
            hovertemplate="%{customdata}<extra></extra>",
        )
    )
    made.update_layout(
        template=LOOK,
        hoverlabel={"bordercolor": CHOSEN},
        margin={"l": 64, "r": 12, "t": 10, "b": 48},
        height=400,
        hovermode="closest",
        xaxis={"title": {"text": _as_text(x)}},
        yaxis={"title": {"text": _as_text(y)}},
    )
    return made


def _plain(row: dict[str, Any]) -> str:
    """A row under the pointer: its first values, one a line."""
    return "<br>".join(f"{_as_text(name)} {_as_text(shown(value))}" for name, value in list(row.items())[:12])


def _as_text(value: Any) -> str:
    """A value where the plot reads markup: none of it is left."""
    text = number(value) if isinstance(value, float) else str(value)[:80]
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


@dataclass(frozen=True)
class Heads:
    """The heads of a result: the names, and the grid of one column as plain data for the browser."""

    names: list[str]
    grid: dict[str, Any]
    note: str


def heads_figure(frame: Any, value: str, group: int) -> Heads:
    """The layer × head grid of a column, over the rows of each head; the heads in the order of the rows.

    ValueError when there is no such head in any model.
    """
    rows = frame.dropna(subset=list(HEAD))
    layers, heads = (int(rows[name].max()) + 1 if len(rows) else 0 for name in HEAD)
    if layers > MOST_LAYERS or heads > MOST_HEADS or (len(rows) and int(rows[list(HEAD)].min().min()) < 0):
        raise ValueError(f"there is no model of {layers:,} layers of {heads:,} heads")
    names = list(
        dict.fromkeys(f"L{layer}H{head}" for layer, head in zip(rows["layer"], rows["head"], strict=True))
    )
    cells: list[float | None] = [None] * (layers * heads)
    if value:
        for (layer, head), mean in rows.groupby(list(HEAD), sort=False)[value].mean().items():
            cells[int(layer) * heads + int(head)] = float(mean) if math.isfinite(mean) else None
    known = [cell for cell in cells if cell is not None]
    high = max((abs(cell) for cell in known), default=0.0)
    low = -high if min(known, default=0.0) < 0 else 0.0
    several = "the mean of its rows" if len(names) < len(rows) else "its row"
    grid = {
        "label": f"{value} of the heads in the result, layers down, heads across",
        "metric": value,
        "layers": layers,
        "heads": heads,
        "group": group if group and heads % group == 0 else 0,
        "scale": "div" if low < 0 else "seq",
        "texts": [number(cell) if cell is not None else "not in the result" for cell in cells],
        "levels": [level(cell, low, high) for cell in cells],
    }
    note = f"{len(names)} heads, coloured by {value}, {number(low)} to {number(high)}; of a head {several}."
    return Heads(names, grid, note)
