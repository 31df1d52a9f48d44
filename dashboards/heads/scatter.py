"""Two scores of every head against each other."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from sparselens.analyses.plot import CHOSEN, DOT, GREY, LOOK
from sparselens.dashboards.heads.finder import inside, side_name
from sparselens.dashboards.heads.score_value import Values
from sparselens.dashboards.selection import Box
from sparselens.dashboards.verdict import number


def points(x: Values, x_side: str, y: Values, y_side: str) -> list[dict[str, Any]]:
    """The heads that have both scores, with `x` and `y`."""
    across = {row["head_name"]: row.get(x_side) for row in x.rows}
    return [
        {
            "head_name": row["head_name"],
            "layer": row["layer"],
            "head": row["head"],
            "x": across[row["head_name"]],
            "y": row[y_side],
        }
        for row in y.rows
        if row.get(y_side) is not None and across.get(row["head_name"]) is not None
    ]


def correlation(found: list[dict[str, Any]]) -> float | None:
    """Spearman's rank correlation of the points; None below three or where one score is constant."""
    if len(found) < 3:
        return None
    ranks = [_ranks([point[axis] for point in found]) for axis in ("x", "y")]
    if any(np.ptp(each) == 0 for each in ranks):
        return None
    return float(np.corrcoef(*ranks)[0, 1])


def _ranks(numbers: list[float]) -> Any:
    """Ranks with ties at their mean."""
    _, place, count = np.unique(numbers, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def axis_title(values: Values, side: str) -> str:
    """What an axis shows; plotly reads markup in it, and a trace brings none."""
    return f"{escape(values.score.label)} · {side_name(values, side)}"


def figure(
    found: list[dict[str, Any]],
    titles: tuple[str, str],
    roles: dict[tuple[int, int], str],
    chosen: str,
    box: Box | None,
) -> go.Figure:
    """The scatter plot: a point a head, the chosen one marked, the brushed rectangle drawn."""
    made = go.Figure()
    brushed = inside(box, found)
    for marked in (False, True):
        some = [point for point in found if (point["head_name"] == chosen) == marked]
        made.add_trace(
            go.Scatter(
                x=[point["x"] for point in some],
                y=[point["y"] for point in some],
                mode="markers+text" if marked else "markers",
                text=[point["head_name"] for point in some] if marked else None,
                textposition="top center",
                customdata=[
                    [
                        point["layer"],
                        point["head"],
                        point["head_name"],
                        roles.get((point["layer"], point["head"]), ""),
                    ]
                    for point in some
                ],
                selectedpoints=None
                if brushed is None
                else [place for place, point in enumerate(some) if point["head_name"] in brushed],
                marker={
                    "size": 12 if marked else 8,
                    "color": CHOSEN if marked else DOT,
                    "opacity": 1 if marked else 0.62,
                    "line": {"width": 1.5 if marked else 0, "color": GREY},
                },
                hovertemplate="<b>%{customdata[2]}</b> %{customdata[3]}<br>x %{x:.4g}<br>y %{y:.4g}<extra></extra>",
            )
        )
    made.update_layout(
        template=LOOK,
        margin={"l": 58, "r": 12, "t": 10, "b": 46},
        height=400,
        showlegend=False,
        dragmode="select",
        hovermode="closest",
        uirevision=" ".join(titles),
        selectionrevision=str(box),
        selections=[],
        shapes=[] if box is None else [_rectangle(box)],
    )
    for axis, title in zip(("x", "y"), titles, strict=True):
        made.update_layout({f"{axis}axis": {"title": {"text": title}}})
    return made


def _rectangle(box: Box) -> dict[str, Any]:
    """The brushed rectangle, under the points so that they still answer the pointer."""
    corners = {"x0": box.x_low, "x1": box.x_high, "y0": box.y_low, "y1": box.y_high}
    line = {"color": CHOSEN, "width": 1, "dash": "dot"}
    return {"type": "rect", "layer": "below", **corners, "line": line, "fillcolor": "rgba(221,122,42,0.07)"}


def sentence(found: list[dict[str, Any]], brushed: set[str] | None) -> str:
    """How many heads there are, how the two scores go together, how many are brushed."""
    words = f"{len(found)} heads; Spearman's rank correlation {number(correlation(found), 2)}."
    if brushed is not None:
        words += f" {len(brushed)} in the rectangle: the table shows these."
    return words
