"""Quality against density: the points of sweeps as a table and as a figure, from `evals` alone. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from sparselens.analyses.plot import GREY, LOOK
from sparselens.analyses.sweep.metric import HIGHER, METRICS

POINTS = """
SELECT e.run_id, p.args->>'$.method' AS method, (p.args->>'$.target')::DOUBLE AS target, p.policy, p.phase,
       p.args->>'$.prompts' AS prompts, p.extra->>'$.unit' AS unit, (p.extra->>'$.reached')::BOOLEAN AS reached,
       p.off_label, p.lookahead, p.model, e.metric, e.value, e.ci_low, e.ci_high, e.n,
       e.n_clusters, e.analysis_id
FROM evals e JOIN runs p USING (run_id) JOIN runs s ON s.run_id = e.analysis_id
WHERE e.task = 'sweep' AND p.kind = 'sweep' AND coalesce($analysis, e.analysis_id) = e.analysis_id
QUALIFY e.analysis_id = first_value(e.analysis_id) OVER (
  PARTITION BY method, target, prompts, p.phase, p.args->>'$.decode', p.args->>'$.base', p.weight_hash, p.dtype
  ORDER BY s.created_at DESC, e.analysis_id DESC)
ORDER BY phase, target, method, e.metric
"""
"""The newest number of every point and metric, long; of one sweep, or of all (`$analysis` NULL)."""

ABOUT = [
    "run_id", "method", "target", "policy", "phase", "prompts", "unit", "reached", "off_label", "lookahead",
    "model", "analysis_id",
]  # fmt: skip
LOSSES = ("answer_nll_change", "nll_change")
PALETTE = (
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee8866", "#44bb99", "#bbcc33", "#99ddff",
    "#ffaabb", "#77aadd",
)  # fmt: skip
LEGEND = 12  # methods that a legend names; of more, the pointer does


def wide(points: pd.DataFrame) -> pd.DataFrame:
    """Return a row a point: what it is, and every metric with `_low`, `_high`, `_n` and `_clusters` beside it."""
    if points.empty:
        return pd.DataFrame(columns=[*ABOUT, "density"])
    about = points.drop_duplicates("run_id")[ABOUT].set_index("run_id", drop=False)
    for column, suffix in (
        ("value", ""), ("ci_low", "_low"), ("ci_high", "_high"), ("n", "_n"), ("n_clusters", "_clusters"),
    ):  # fmt: skip
        part = points.pivot(index="run_id", columns="metric", values=column).add_suffix(suffix)
        about = about.join(part)
    found: pd.DataFrame = about.reset_index(drop=True)
    return found


def ranked(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the points of `wide` with their `rank` by a metric among those of one phase, set and target density.

    Points that are off-label, are not at their density, or fell back to dense attention have none.
    Raises `ValueError` on a metric that the points do not have.
    """
    if metric not in frame:
        known = ", ".join(name for name in METRICS if name in frame) or "none"
        raise ValueError(f"these points have no metric {metric!r}; they have {known}")
    compared = frame["reached"] & ~frame["off_label"] & (frame["dense_call_share"].fillna(0) == 0)
    values = frame[metric].where(compared)
    place = values.groupby([frame["prompts"], frame["phase"], frame["target"]]).rank(
        ascending=metric not in HIGHER, method="min"
    )
    order = frame.assign(rank=place.astype("Int64"))
    return order.sort_values(["prompts", "phase", "target", "rank", "method"], na_position="last")


def headline(frame: pd.DataFrame) -> tuple[str, ...]:
    """Return the metrics that are shown first: recalled mass, write error, and the loss that the prompts have."""
    losses = [name for name in LOSSES if name in frame and frame[name].notna().any()]
    return ("recalled_mass", "write_error", *losses[:1])


def marks(row: Any) -> str:
    """Return what is to be known of a point in words: off-label, looks ahead, dense, not at the density."""
    words = []
    if row["off_label"]:
        words.append("off-label")
    if not row["reached"]:
        words.append("nearest density")
    if (row["dense_call_share"] or 0) > 0:
        words.append(f"{row['dense_call_share']:.0%} of calls dense")
    if row["lookahead"]:
        words.append("looks ahead")
    return ", ".join(words)


def figure(frame: pd.DataFrame, metric: str = "recalled_mass") -> go.Figure:
    """Return a metric against the measured density, of the points of `wide` of one phase and one prompt set.

    A line a method through its points, with their intervals; off-label points are hollow, those with dense calls are
    squares, those that are not at their density triangles. The oracle and the random selections of each point's shape
    are grey. Raises `ValueError` on several phases or sets, and on an unknown metric.
    """
    if metric not in frame:
        raise ValueError(f"these points have no metric {metric!r}")
    for column in ("phase", "prompts"):
        if frame[column].nunique() > 1:
            raise ValueError(f"one figure is of one {column}: {', '.join(sorted(frame[column].unique()))}")
    made = go.Figure()
    for role, symbol in (("oracle", "line-ew-open"), ("random", "x-thin-open")):
        made.add_trace(_reference(frame, metric, role, symbol))
    methods = sorted(frame["method"].unique())
    names = short(methods)
    for number, method in enumerate(methods):
        points = frame[frame["method"] == method].sort_values("density")
        made.add_trace(_method(points, metric, names[method], PALETTE[number % len(PALETTE)]))
    made.update_layout(
        xaxis_title="measured density",
        yaxis_title=metric.replace("_", " "),
        template=LOOK,
        margin={"l": 60, "r": 10, "t": 10, "b": 45},
        height=420,
        legend={"orientation": "h", "y": -0.18, "yanchor": "top", "x": 0, "font": {"size": 11}},
        showlegend=len(methods) <= LEGEND,
    )
    made.update_xaxes(tickformat=".0%")
    made.update_yaxes(gridcolor="rgba(138,143,152,0.25)")
    return made


def _reference(frame: pd.DataFrame, metric: str, role: str, symbol: str) -> go.Scatter:
    """Return what a reference of each point's shape reaches."""
    name = f"{metric}_{role}"
    known = frame[frame[name].notna()] if name in frame else frame.iloc[:0]
    return go.Scatter(
        x=known["density"],
        y=known[name] if name in frame else [],
        mode="markers",
        name=f"{role} of the same shape",
        marker={"symbol": symbol, "color": GREY, "size": 9, "line": {"width": 2, "color": GREY}},
        text=known["method"],
        hovertemplate="%{text}<br>%{x:.1%}: %{y:.3g}",
    )


def _method(points: pd.DataFrame, metric: str, name: str, colour: str) -> go.Scatter:
    """Return a method's points with their intervals."""
    value = points[metric]
    return go.Scatter(
        x=points["density"],
        y=value,
        mode="lines+markers",
        name=name,
        line={"color": colour, "width": 1.5, "dash": "dot" if points["off_label"].any() else "solid"},
        marker={"symbol": symbols(points), "size": 9, "color": colour, "line": {"width": 2}},
        error_y={
            "type": "data",
            "array": points[f"{metric}_high"] - value,
            "arrayminus": value - points[f"{metric}_low"],
            "thickness": 1,
            "width": 3,
        },
        text=[f"{row['policy']}<br>{marks(row)}" for _, row in points.iterrows()],
        hovertemplate="%{text}<br>%{x:.1%}: %{y:.3g}",
    )


def short(methods: Sequence[str]) -> dict[str, str]:
    """Return what a legend calls each method: its name, its whole call where two share the name."""
    plain = [method.partition("(")[0] for method in methods]
    return {
        method: name if plain.count(name) == 1 else method
        for method, name in zip(methods, plain, strict=True)
    }


def symbols(points: pd.DataFrame) -> Sequence[str]:
    """Return how each point is drawn: hollow where off-label, square where calls ran dense."""
    made = []
    for _, row in points.iterrows():
        shape = (
            "square" if (row["dense_call_share"] or 0) > 0 else "circle" if row["reached"] else "triangle-up"
        )
        made.append(f"{shape}-open" if row["off_label"] else shape)
    return made
