"""The panel of the layer × head grid of Compare, with the same numbers ranked."""

from __future__ import annotations

from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html

from sparselens.dashboards.choice import over
from sparselens.dashboards.compare.brush import active
from sparselens.dashboards.compare.change import Change, change, offered
from sparselens.dashboards.compare.floor import FLOOR, floor_lines
from sparselens.dashboards.compare.grid import grid_figure, legend
from sparselens.dashboards.export.link import save_buttons
from sparselens.dashboards.heads.finder import roles
from sparselens.dashboards.heads.score import scores
from sparselens.dashboards.heads.score_value import values
from sparselens.dashboards.metric import DIFF_METRICS, meaning
from sparselens.dashboards.page import HIDDEN, chosen, panel, part, parts, problem, switch, table
from sparselens.dashboards.picker import choices, picker
from sparselens.dashboards.query import Source, SourceError, records
from sparselens.dashboards.selection import Selection

LIST_FIELDS = part("a", "b", "prompt", "over", "scope", "brush")
GRID_FIELDS = part("a", "b", "prompt", "over", "scope", "rows", "metric", "brush")


def columns(chosen_metric: str, there: Change | None = None) -> list[dict[str, Any]]:
    """Columns of the ranked table: the chosen metric first and sorted by, the others after it."""
    metrics = DIFF_METRICS if there is None else there.metrics
    names = [chosen_metric, *[name for name in metrics if name != chosen_metric]]
    return [
        {"headerName": "", "cellRenderer": "PickHead", "width": 34, "pinned": "left", "sortable": False,
         "headerTooltip": "give this head back (below)"},
        {"field": "head_name", "headerName": "Head", "cellRenderer": "HeadLink", "width": 74, "pinned": "left"},
        *[
            {
                "field": name,
                "headerName": name.replace("_", " "),
                "headerTooltip": meaning("diffs", name) if there is None else there.meaning(name),
                "type": "rightAligned",
                "width": 112,
                "cellRenderer": "Number",
                "sort": "desc" if name == chosen_metric else None,
            }
            for name in names
        ],
        {"field": "n_rows", "headerName": "rows", "headerTooltip": "query rows the numbers are over",
         "type": "rightAligned", "width": 70},
    ]  # fmt: skip


def heads_panel() -> Any:
    """The panel before anything is drawn in it."""
    return panel(
        "Heads",
        *parts(LIST_FIELDS, GRID_FIELDS),
        dcc.Store(id="grid-data"),
        html.Div(
            [
                picker("metric", "Metric", "What the grid shows"),
                picker("rows", "Rows", "Over which query rows"),
                picker("scope", "Scope", "What is compared with what"),
                switch("Over", "over", [("prompt", "This prompt"), ("all", "All prompts")]),
            ],
            className="controls",
        ),
        html.Div(id="heads-over", className="notes"),
        html.Div(
            [
                html.Div(
                    [html.Div(id="grid", className="grid"), html.Div(id="grid-legend")], className="grid-side"
                ),
                table("ranked", columns(DIFF_METRICS[0]), "table ranked"),
            ],
            className="heads",
        ),
        tools=[save_buttons("grid")],
        note="layers down, heads across; the same numbers ranked",
    )


def holding_zero(source: Source, selection: Selection) -> set[tuple[int, int]]:
    """The heads, by layer and number, whose interval over groups of prompts holds 0; of one prompt there is none."""
    if selection.over != "all":
        return set()
    score = scores(source, selection.a, selection.b).get(f"diffs.{selection.metric}")
    found = values(source, score, selection).rows if score is not None else []
    return {
        (row["layer"], row["head"])
        for row in found
        if row.get("diff_low") is not None and row["diff_low"] <= 0 <= row["diff_high"]
    }


def _drawn(source: Source, selection: Selection, settled: dict[str, Any]) -> tuple[Any, ...]:
    """The grid's data, its legend, the rows and columns of the table, and what the numbers are over."""
    found = change(source, selection)
    metric = found.metric(selection.metric)
    asked = {field: getattr(selection, field) for field in ("a", "b", "prompt", "over", "scope", "rows")}
    brushed = active(selection) is not None
    floor = source.records(FLOOR, **asked) if metric == "write_error" and not brushed else []
    named, unsure = roles(source, selection.a), holding_zero(source, selection)
    figure = grid_figure(
        found.frame,
        metric,
        tuple(settled["shape"]),
        settled["group"],
        named,
        unsure,
        means=found.meaning(metric),
    )
    lines = [html.P(line, className="note") for line in found.lines]
    if metric != selection.metric:
        lines.append(
            html.P(f"{selection.metric} has no value here; {metric} is shown.", className="note said")
        )
    key = legend(figure, found.scope, floor_lines(floor))
    return figure, key, records(found.frame), columns(metric, found), {}, lines


def register_heads(app: Dash, source: Source) -> None:
    """Wire the panel to the selection."""

    def fill_lists(data: dict[str, Any] | None) -> tuple[Any, ...]:
        selection = chosen(data)
        if selection is None:
            return list(DIFF_METRICS), [], []
        try:
            kinds = over(source, selection.a, selection.b)
            metrics = offered(source, selection)
        except SourceError:
            return list(DIFF_METRICS), [], []
        return metrics, kinds.get(selection.scope, []), list(kinds)

    app.callback(
        *[choices(field) for field in ("metric", "rows", "scope")],
        Input(LIST_FIELDS, "data"),
    )(fill_lists)

    def draw_heads(data: dict[str, Any] | None, settled: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or settled is None or not selection.b:
            return None, None, [], [], HIDDEN, None
        try:
            return _drawn(source, selection, settled)
        except SourceError as found:
            return {}, problem(found), [], [], HIDDEN, None

    app.callback(
        Output("grid-data", "data"),
        Output("grid-legend", "children"),
        Output("ranked", "rowData"),
        Output("ranked", "columnDefs"),
        Output("ranked", "style"),
        Output("heads-over", "children"),
        Input(GRID_FIELDS, "data"),
        State("selection", "data"),
    )(draw_heads)
    app.clientside_callback(ClientsideFunction("sparselens", "grid"), Input("grid-data", "data"))
