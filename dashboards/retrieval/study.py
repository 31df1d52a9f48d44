"""Restores and ablations of the trace: what sets of heads repair or break, against random heads, as a curve."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from dash import html

from sparselens.analyses.plot import GREY, LOOK
from sparselens.analyses.sweep.frontier import PALETTE
from sparselens.dashboards.query import Source
from sparselens.dashboards.selection import Selection
from sparselens.dashboards.verdict import number

STUDIES = """
SELECT i.analysis_id, i.base_run, r.name, r.policy, r.prompt_set, r.args, r.created_at,
       json_extract_string(r.args, '$.policy') AS under, b.policy AS chosen_policy
FROM (SELECT DISTINCT analysis_id, base_run FROM interventions) i JOIN runs r ON r.run_id = i.analysis_id
LEFT JOIN runs b ON b.run_id = $b
ORDER BY i.base_run = $b DESC NULLS LAST, under = chosen_policy DESC NULLS LAST, r.name = 'restore' DESC,
         r.created_at DESC, i.analysis_id
"""
TRIALS = """
SELECT kind, order_by, matched, n_heads, draw, metric, value, ci_low, ci_high, n, n_clusters, definition
FROM interventions WHERE analysis_id = $study AND fold IS NULL ORDER BY trial, n_heads
"""
HEADS = """
SELECT DISTINCT order_by, fold, n_heads, heads FROM interventions
WHERE analysis_id = $study AND fold IS NOT NULL AND order_by IS NOT NULL AND order_by <> 'random'
QUALIFY n_heads = max(n_heads) OVER (PARTITION BY order_by, fold) ORDER BY order_by, fold
"""
CHANGES = ("gap_closed", "nll_rise")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross")
RANDOM = "random, as "
WIDER = "the policy, wider"


def studies(source: Source, b: str) -> list[dict[str, Any]]:
    """The restores and ablations of the trace, those of the chosen run first, newest first."""
    return source.records(STUDIES, b=b or None)


def label(study: dict[str, Any]) -> str:
    """A study in one line."""
    args = json.loads(study["args"] or "{}")
    words = [
        study["name"] or "study",
        args.get("kind", ""),
        study["under"] or study["policy"],
        study["prompt_set"],
    ]
    return " · ".join(str(word) for word in words if word)


def told(rows: Sequence[dict[str, Any]], outcome: str) -> str:
    """The metric that an outcome of the selection means in a study: `change` is its gap closed or rise of loss."""
    if outcome != "change":
        return outcome
    return next((metric for metric in CHANGES if any(row["metric"] == metric for row in rows)), CHANGES[0])


def series(rows: Sequence[dict[str, Any]], metric: str) -> dict[str, list[dict[str, Any]]]:
    """The points of a metric by what was done: an order, random heads as an order, the wider policy."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["metric"] != metric or row["value"] is None or row["draw"] is not None:
            continue
        if row["kind"] in ("none", "base"):
            continue
        found.setdefault(_name(row), []).append(row)
    return {name: sorted(each, key=lambda row: row["n_heads"]) for name, each in found.items()}


def _name(row: dict[str, Any]) -> str:
    if row["kind"] == "policy":
        return WIDER
    return f"{RANDOM}{row['matched']}" if row["order_by"] == "random" else str(row["order_by"])


def figure(rows: Sequence[dict[str, Any]], metric: str) -> go.Figure:
    """A metric against the number of heads: a line an order with intervals; random heads and wider policies grey."""
    made = go.Figure()
    draws = [row for row in rows if row["metric"] == metric and row["draw"] is not None]
    made.add_trace(
        go.Scatter(
            x=[row["n_heads"] for row in draws],
            y=[row["value"] for row in draws],
            mode="markers",
            name="single random sets",
            marker={"color": GREY, "size": 6, "opacity": 0.4, "symbol": "line-ew-open"},
            text=[escape(f"as {row['matched']}, draw {row['draw']}") for row in draws],
            hovertemplate="%{text}<br>%{x} heads: %{y:.3f}<extra></extra>",
        )
    )
    for place, (name, points) in enumerate(series(rows, metric).items()):
        made.add_trace(_line(name, points, place))
    for kind, title in (("none", "the run itself"), ("base", "its base")):
        level = next((row for row in rows if row["kind"] == kind and row["metric"] == metric), None)
        if level is not None and level["value"] is not None:
            made.add_hline(
                y=level["value"],
                line={"color": GREY, "width": 1, "dash": "dash"},
                annotation={"text": title, "font": {"color": GREY, "size": 11}},
                annotation_position="top left",
            )
    made.update_layout(
        template=LOOK,
        margin={"l": 56, "r": 12, "t": 10, "b": 44},
        height=380,
        legend={"orientation": "h", "y": -0.26},
    )
    made.update_xaxes(title={"text": "heads"})
    made.update_yaxes(title={"text": escape(metric.replace("_", " "))})
    return made


def _line(name: str, points: Sequence[dict[str, Any]], place: int) -> go.Scatter:
    grey = name == WIDER or name.startswith(RANDOM)
    colour = GREY if grey else PALETTE[place % len(PALETTE)]
    return go.Scatter(
        x=[row["n_heads"] for row in points],
        y=[row["value"] for row in points],
        mode="lines+markers",
        name=escape(name),
        line={"color": colour, "width": 1.8, "dash": "dot" if name == WIDER else "solid"},
        marker={"size": 8, "color": colour, "symbol": "x" if grey else SYMBOLS[place % len(SYMBOLS)]},
        error_y={
            "type": "data",
            "array": [0 if row["ci_high"] is None else row["ci_high"] - row["value"] for row in points],
            "arrayminus": [0 if row["ci_low"] is None else row["value"] - row["ci_low"] for row in points],
            "thickness": 1.2,
            "width": 4,
        },
        text=[f"n {row['n']} in {row['n_clusters']} groups" for row in points],
        hovertemplate="%{fullData.name}<br>%{x} heads: %{y:.3f}<br>%{text}<extra></extra>",
    )


def table(rows: Sequence[dict[str, Any]], metric: str) -> Any:
    """The curve's numbers with their intervals, and what remains after random heads."""
    over = {
        (row["order_by"], row["n_heads"]): row for row in rows if row["metric"] == f"{metric}_over_random"
    }
    body = [
        html.Tr(
            [
                html.Th(name, scope="row"),
                html.Td(row["n_heads"]),
                html.Td(_interval(row)),
                html.Td(_interval(over.get((row["order_by"], row["n_heads"]))) if row["order_by"] else ""),
                html.Td(f"{row['n']} in {row['n_clusters']}"),
            ]
        )
        for name, points in series(rows, metric).items()
        for row in points
    ]
    names = ("heads ranked by", "heads", metric.replace("_", " "), "minus random", "prompts in groups")
    top = html.Tr([html.Th(name, scope="col") for name in names])
    return html.Table([html.Thead(top), html.Tbody(body)], className="numbers wide")


def _interval(row: dict[str, Any] | None) -> str:
    if row is None or row["value"] is None:
        return ""
    if row["ci_low"] is None:
        return number(row["value"])
    return f"{number(row['value'])} [{number(row['ci_low'])}, {number(row['ci_high'])}]"


def _ranked(args: dict[str, Any]) -> str:
    """What the heads of a study were chosen on."""
    if list(args.get("orders", ())) == ["given"]:
        return "the heads given by name"
    return f"ranked on {args.get('ranked_on')}, other families each way"


def about(
    rows: Sequence[dict[str, Any]], study: dict[str, Any], metric: str, selection: Selection
) -> list[str]:
    """What the study is of, how large its gap is, what the metric means, how many random sets there are."""
    args = json.loads(study["args"] or "{}")
    said = [
        f"{study['name']} {args.get('kind', '')}, policy {study['under']} against {args.get('base')}, phase "
        f"{args.get('phase')}; tested on {study['prompt_set']}, {_ranked(args)}."
    ]
    if selection.b and study["base_run"] != selection.b:
        same = study["under"] == study["chosen_policy"]
        said.append(
            "Of B's policy, not of the run B itself." if same else "Not of B's policy: choose another study."
        )
    gap = next((row for row in rows if row["metric"] == "gap"), None)
    if gap is not None:
        words = f"The gap: answer NLL rises by {_interval(gap)} nats a token from the base to the run."
        if gap["value"] <= 0 or (gap["ci_low"] is not None and gap["ci_low"] <= 0):
            words += " It cannot be told from 0, so shares of it mean nothing."
        said.append(words)
    meaning = next((row["definition"] for row in rows if row["metric"] == metric and row["definition"]), "")
    draws = len({row["draw"] for row in rows if row["draw"] is not None})
    said.append(f"{metric}: {meaning}. Bars and brackets: 95 % bootstrap over groups, paired by prompt.")
    said.append(
        f"Random heads: {draws} sets for each matched ranking." if draws else "No random heads were drawn."
    )
    return said


def heads_figure(rows: Sequence[dict[str, Any]]) -> Any:
    """The largest ranked set of each order and fold, as links."""
    return html.Dl(
        [
            part
            for row in rows
            for part in (
                html.Dt(f"{row['order_by']}, fold {row['fold']}"),
                html.Dd([_link(name) for name in _names(row["heads"])]),
            )
        ],
        className="set-heads",
    )


def _names(heads: Any) -> list[str]:
    return [] if heads is None else [str(name) for name in heads]


def _link(name: str) -> Any:
    layer, _, head = name.removeprefix("L").partition("H")
    return html.Button(
        name,
        type="button",
        className="link",
        title=f"Open {name}",
        **{"data-go": f'{{"layer":{layer},"head":{head}}}', "data-page": "/head"},
    )
