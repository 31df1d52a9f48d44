"""Methods at one density, one below the other: each metric with its interval beside the references of its shape."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sparselens.analyses.plot import GREY, LOOK
from sparselens.analyses.sweep.frontier import marks, ranked, short, symbols

POINT = "#4477aa"
ROW = 22  # pixels a method
MARGIN = 96  # pixels around the rows


def dots(frame: pd.DataFrame, metrics: tuple[str, ...], target: float) -> go.Figure:
    """Return the points of `wide` at a target density, of one phase and prompt set: a row a method, a column a metric.

    Rows are in the order of their rank by the first metric, those without a rank at the end. Off-label points are
    hollow. The oracle and the random selections of each point's shape are grey. Raises `ValueError` where no point
    has that target.
    """
    points = ranked(frame[frame["target"] == target], metrics[0])
    if points.empty:
        known = ", ".join(f"{each:g}" for each in sorted(frame["target"].unique())) or "none"
        raise ValueError(f"no point has the target density {target:g}; there are {known}")
    names = short(points["method"].tolist())
    rows = [names[method] for method in points["method"]]
    made = make_subplots(
        rows=1, cols=len(metrics), shared_yaxes=True, horizontal_spacing=0.02,
        subplot_titles=[metric.replace("_", " ") for metric in metrics],
    )  # fmt: skip
    for column, metric in enumerate(metrics, 1):
        for role, symbol in (("random", "x-thin-open"), ("oracle", "line-ns-open")):
            made.add_trace(_reference(points, rows, metric, role, symbol), row=1, col=column)
        made.add_trace(_points(points, rows, metric), row=1, col=column)
    made.update_layout(
        template=LOOK,
        margin={"l": 10, "r": 10, "t": 30, "b": 36},
        height=MARGIN + ROW * len(rows),
        showlegend=False,
        hovermode="closest",
    )
    made.update_xaxes(nticks=5)
    made.update_yaxes(autorange="reversed", automargin=True, dtick=1)
    return made


def _reference(points: pd.DataFrame, rows: list[str], metric: str, role: str, symbol: str) -> go.Scatter:
    name = f"{metric}_{role}"
    return go.Scatter(
        x=points[name] if name in points else [None] * len(rows),
        y=rows,
        mode="markers",
        marker={"symbol": symbol, "color": GREY, "size": 9, "line": {"width": 2, "color": GREY}},
        name=role,
        hovertemplate=f"{role} of the same shape<br>%{{x:.3g}}<extra></extra>",
    )


def _points(points: pd.DataFrame, rows: list[str], metric: str) -> go.Scatter:
    value = points[metric]
    return go.Scatter(
        x=value,
        y=rows,
        mode="markers",
        marker={"symbol": symbols(points), "size": 9, "color": POINT, "line": {"width": 2, "color": POINT}},
        error_x={
            "type": "data",
            "array": points[f"{metric}_high"] - value,
            "arrayminus": value - points[f"{metric}_low"],
            "thickness": 1.5,
            "width": 3,
            "color": POINT,
        },
        name=metric,
        text=[_said(row) for _, row in points.iterrows()],
        hovertemplate="%{text}<br>%{x:.3g}<extra></extra>",
    )


def _said(row: Any) -> str:
    """A point under the pointer; its policy may be long, and is in the table."""
    known = [f"density {row['density']:.3g}", marks(row)]
    return "<br>".join(each for each in (row["method"].partition("(")[0], *known) if each)
