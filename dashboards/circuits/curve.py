"""How much of a task the best edges carry, by their number: each circuit under its own policy, both under B's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from sparselens.analyses.plot import CHOSEN, DOT, GREY, LOOK
from sparselens.dashboards.verdict import number
from sparselens.storage import schema

CURVES = """
SELECT circuit, policy, measure, asked, n_edges, value, ci_low, ci_high, n, n_clusters
FROM circuit_curves WHERE circuit IN ($a, $b) AND asked > 0 ORDER BY measure, asked
"""
LOOKS = {
    "faithfulness": {"dash": "solid", "symbol": "circle"},
    "complement": {"dash": "dot", "symbol": "diamond"},
    "random": {"dash": "solid", "symbol": "x"},
    "base_job": {"dash": "dash", "symbol": "square"},
}
OWN = ("faithfulness", "complement", "random")
UNDER = ("faithfulness", "base_job")
MEANING = schema.TABLES["circuit_curves"]["measure"].meaning.replace("`", "")

Rows = Sequence[dict[str, Any]]
Circuit = dict[str, Any]


def own(rows: Rows, circuit: Circuit) -> list[dict[str, Any]]:
    """The measures of a circuit under the policy it was found under."""
    return _of(rows, circuit, circuit["policy"], OWN)


def under(rows: Rows, circuit: Circuit, policy: str) -> list[dict[str, Any]]:
    """What a circuit carries under a policy, and of the base's job."""
    return _of(rows, circuit, policy, UNDER)


def _of(rows: Rows, circuit: Circuit, policy: str, measures: Sequence[str]) -> list[dict[str, Any]]:
    return [
        row
        for row in rows
        if row["circuit"] == circuit["circuit"] and row["policy"] == policy and row["measure"] in measures
    ]


def figure(sides: Sequence[tuple[str, Circuit, Rows]]) -> go.Figure:
    """A share against the number of edges: a line a measure and circuit, with intervals; A blue, B orange."""
    made = go.Figure()
    for side, circuit, rows in sides:
        for measure, look in LOOKS.items():
            points = [row for row in rows if row["measure"] == measure and row["value"] is not None]
            if points:
                made.add_trace(_line(side, measure, points, look, circuit))
    for level in (0, 1):
        made.add_hline(y=level, line={"color": GREY, "width": 1, "dash": "dot"})
    made.update_layout(
        template=LOOK,
        margin={"l": 48, "r": 10, "t": 8, "b": 40},
        height=320,
        legend={"orientation": "h", "y": -0.24},
    )
    made.update_xaxes(type="log", dtick="D2", title={"text": "edges taken"})
    made.update_yaxes(zeroline=False, title={"text": "share"})
    return made


def _line(side: str, measure: str, points: Rows, look: dict[str, str], circuit: Circuit) -> go.Scatter:
    colour = {"A": DOT, "B": CHOSEN}[side]
    return go.Scatter(
        x=[row["asked"] for row in points],
        y=[row["value"] for row in points],
        mode="markers" if measure == "random" else "lines+markers",
        name=f"{side} {measure.replace('_', ' ')}",
        line={"color": colour, "width": 1.8, "dash": look["dash"]},
        marker={
            "color": colour,
            "line": {"width": 0},
            "symbol": look["symbol"],
            "size": [11 if row["asked"] == circuit["asked"] else 7 for row in points],
        },
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [_gap(row["ci_high"], row["value"]) for row in points],
            "arrayminus": [_gap(row["value"], row["ci_low"]) for row in points],
            "thickness": 1.1,
            "width": 3,
        },
        text=[f"{row['n_edges']:,} on a way, n {row['n']} in {row['n_clusters']} clusters" for row in points],
        hovertemplate="%{fullData.name}<br>%{x:,} edges: %{y:.3f}<br>%{text}<extra></extra>",
    )


def _gap(high: float | None, low: float | None) -> float:
    return 0.0 if high is None or low is None else max(high - low, 0.0)


def carried(side: str, circuit: Circuit) -> str:
    """What is measured and over how many prompts, in one sentence."""
    return (
        f"{side}, {circuit['policy']}: {circuit['metric']}; {number(circuit['whole'], 2)} whole, "
        f"{number(circuit['empty'], 2)} with everything ablated; {circuit['n']} test prompts in "
        f"{circuit['n_clusters']} clusters, scores from {circuit['n_found']} others."
    )


def nothing_to_carry(circuit: Circuit) -> bool:
    """Whether the whole model does no better than the ablated one."""
    whole, empty = circuit["whole"], circuit["empty"]
    return whole is not None and empty is not None and bool(whole <= empty)
