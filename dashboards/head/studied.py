"""What restores and ablations say of one head: its rank in each order, and the curve with its first set marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from html import escape
from typing import Any

import plotly.graph_objects as go
from dash import Dash, Input, Output, dcc, html

from sparselens.dashboards.export.link import save_buttons
from sparselens.dashboards.page import chosen, message, panel, part, problem
from sparselens.dashboards.picker import filled
from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.retrieval.study import TRIALS, about, figure, label, series, studies, told
from sparselens.dashboards.selection import Selection
from sparselens.dashboards.verdict import number

SETS = """
SELECT order_by, fold, min(n_heads) FILTER (list_contains(heads, $name)) AS first_set, max(n_heads) AS largest,
       max(list_position(heads, $name)) AS place
FROM interventions
WHERE analysis_id = $study AND fold IS NOT NULL AND order_by IS NOT NULL AND order_by <> 'random'
GROUP BY order_by, fold ORDER BY order_by, fold
"""
RANKS = """
SELECT * FROM (
  SELECT metric AS order_by, TRY_CAST(json_extract_string(params, '$.fold') AS INTEGER) AS fold, layer, head, value,
         count(*) OVER w AS heads, row_number() OVER (w ORDER BY value DESC, layer, head) AS rank
  FROM head_scores WHERE analysis_id = $study AND head IS NOT NULL AND value IS NOT NULL
    AND json_extract_string(params, '$.ranking') = 'true'
  WINDOW w AS (PARTITION BY metric, json_extract_string(params, '$.fold'))
) WHERE layer = $layer AND head = $head
"""
STUDY_FIELDS = part("a", "b", "layer", "head", "study")
MARK = "first set with "


def study_panel() -> Any:
    """The panel before anything is drawn in it; it is filled when it comes into view."""
    return panel(
        "Restored and ablated",
        html.Div(id="head-study-list", className="controls"),
        html.Div(id="head-study", **{"data-seen": "seen-study"}),
        note="sets of heads given back or cut, and when this head is among them",
        name="panel-head-study",
    )


def of_pair(source: Source, selection: Selection) -> list[dict[str, Any]]:
    """The studies of run B or its policy, or of run A, those that had this head in a set first."""
    found = [
        study
        for study in studies(source, selection.b)
        if study["base_run"] in (selection.a, selection.b)
        or (study["under"] is not None and study["under"] == study["chosen_policy"])
    ]
    return sorted(found, key=lambda study: not any(row["place"] for row in sets(source, study, selection)))


def settle_study(source: Source, selection: Selection, notices: list[str]) -> Selection:
    """The selection with a study of the pair, where the trace has one; a link's unknown study is said."""
    found = [study["analysis_id"] for study in of_pair(source, selection)]
    if selection.study in found or not found:
        return selection
    if selection.study and selection.study not in [
        study["analysis_id"] for study in studies(source, selection.b)
    ]:
        notices.append(f"There is no study {selection.study[:60]!r} in this trace, another was chosen.")
    return replace(selection, study=found[0])


def sets(source: Source, study: dict[str, Any], selection: Selection) -> list[dict[str, Any]]:
    """Of each order and fold: the smallest set that has the head, the largest there is, the head's place, its rank."""
    name, at = study["analysis_id"], {"layer": selection.layer, "head": selection.head}
    ranks = {(row["order_by"], row["fold"]): row for row in source.records(RANKS, study=name, **at)}
    return [
        {**row, "rank": (known := ranks.get((row["order_by"], row["fold"]), {})).get("rank") or row["place"],
         "heads": known.get("heads")}
        for row in source.records(SETS, study=name, name=selection.head_name)
    ]  # fmt: skip


def marked(
    rows: Sequence[dict[str, Any]], metric: str, found: Sequence[dict[str, Any]], head: str
) -> go.Figure:
    """The curve of a study, with a ring around the first set of each order that has the head in some fold."""
    made = figure(rows, metric)
    points = series(rows, metric)
    first: dict[str, int] = {}
    for row in found:
        if row["first_set"] is not None:
            first[row["order_by"]] = min(row["first_set"], first.get(row["order_by"], row["first_set"]))
    ringed = [
        (point, order)
        for order, size in first.items()
        for point in points.get(order, ())
        if point["n_heads"] == size
    ]
    made.add_trace(
        go.Scatter(
            x=[point["n_heads"] for point, _ in ringed],
            y=[point["value"] for point, _ in ringed],
            mode="markers",
            name=f"{MARK}{head}",
            marker={"size": 19, "symbol": "circle-open", "color": "#d9480f", "line": {"width": 2.5}},
            text=[escape(f"by {order}") for _, order in ringed],
            hovertemplate=f"{MARK}{head}, %{{text}}<br>%{{x}} heads: %{{y:.3f}}<extra></extra>",
        )
    )
    return made


def ranks_figure(found: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]], metric: str) -> Any:
    """The head's rank in each order by fold, and what the first set that has it did."""
    points = {
        name: {point["n_heads"]: point for point in each} for name, each in series(rows, metric).items()
    }
    body = []
    for row in found:
        among = f" of {row['heads']}" if row["heads"] else ""
        ranked = row["rank"] is not None and row["order_by"] != "given"
        rank = f"{row['rank']:.0f}{among}" if ranked else "not ranked"
        point = points.get(row["order_by"], {}).get(row["first_set"])
        outcome = "" if point is None else f"{number(point['value'])} {_interval(point)}"
        first = "in no set" if row["first_set"] is None else f"from {row['first_set']:.0f} heads on"
        body.append(
            html.Tr(
                [
                    html.Th(f"{row['order_by']}, fold {row['fold']}", scope="row"),
                    html.Td(rank),
                    html.Td(first),
                    html.Td(outcome),
                ]
            )
        )
    words = ("heads ranked by", "its rank", "in the sets", f"{metric.replace('_', ' ')} of the first")
    top = html.Tr([html.Th(word, scope="col") for word in words])
    return html.Table([html.Thead(top), html.Tbody(body)], className="numbers")


def _interval(point: dict[str, Any]) -> str:
    return "" if point["ci_low"] is None else f"[{number(point['ci_low'])}, {number(point['ci_high'])}]"


def _drawn(source: Source, selection: Selection) -> Any:
    found = of_pair(source, selection)
    if not found:
        return None, message(
            "No restore or ablation of this pair's policy is in the trace. Under “Test this head” are the commands for "
            "this head alone; `sparselens analyse restore` tries sets of heads."
        )
    study = next((each for each in found if each["analysis_id"] == selection.study), found[0])
    rows = source.records(TRIALS, study=study["analysis_id"])
    metric = told(rows, "change")
    mine = sets(source, study, selection)
    names = [{"value": each["analysis_id"], "label": label(each)} for each in found]
    lists = filled("study", "Study", "Which restore or ablation", names, study["analysis_id"], wide=True)
    graph = dcc.Graph(
        figure=marked(rows, metric, mine, selection.head_name),
        config={"displaylogo": False},
        className="study-graph",
    )
    said = [html.P(line, className="note") for line in about(rows, study, metric, selection)]
    ranks = html.Div(
        ranks_figure(mine, rows, metric),
        className="scroll",
        tabIndex="0",
        role="region",
        **{"aria-label": f"Ranks of {selection.head_name}"},
    )
    drawn = html.Figure([html.Figcaption(["Sets of heads", save_buttons()]), graph])
    return lists, html.Div([drawn, html.Div([ranks, html.Div(said, className="notes")])], className="columns")


def register_study(app: Dash, source: Source) -> None:
    """Wire the panel to the selection."""

    def draw(data: dict[str, Any] | None, seen: bool | None) -> Any:
        selection = chosen(data)
        if selection is None or not seen or selection.layer is None:
            return None, None
        try:
            return _drawn(source, selection)
        except SourceError as found:
            return None, problem(found)

    app.callback(
        Output("head-study-list", "children"),
        Output("head-study", "children"),
        Input(STUDY_FIELDS, "data"),
        Input("seen-study", "data"),
    )(draw)
