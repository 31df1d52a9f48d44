"""The panel of several runs side by side: a lane of heads a run, and the heads by their worst and mean."""

from __future__ import annotations

import json
from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html

from sparselens.dashboards.compare.matrix import Matrix, candidates, matrix, matrix_figure, scale, table_rows
from sparselens.dashboards.drawing import drawn, place, tree
from sparselens.dashboards.metric import SHARES, SIGNED
from sparselens.dashboards.page import HIDDEN, chosen, panel, part, parts, problem, table, table_height
from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.selection import MOST_RUNS, Selection
from sparselens.dashboards.shell import run_label
from sparselens.dashboards.verdict import number

RUN_FIELDS = part("a", "runs")
MATRIX_FIELDS = part("a", "prompt", "over", "scope", "rows", "metric", "brush", "runs")
ROW = 26
NOTHING: tuple[Any, ...] = ({}, None, None, [], [], {}, HIDDEN)


def matrix_panel() -> Any:
    """The panel before anything is drawn in it."""
    return panel(
        "Runs side by side",
        *parts(RUN_FIELDS, MATRIX_FIELDS),
        dcc.Store(id="matrix-data"),
        place("matrix-runs", className="controls matrix-runs"),
        html.Div(id="matrix-lines", className="notes"),
        html.Div(id="matrix", className="matrix"),
        html.P(id="matrix-readout", className="readout", **{"aria-live": "polite"}),
        html.Div(id="matrix-legend"),
        html.Div(table("matrix-table", []), id="matrix-table-place", style=HIDDEN),
        note="heads across, layer by layer; one colour scale; metric, rows and prompts as chosen at Heads",
    )


def columns(found: Matrix) -> list[dict[str, Any]]:
    """Columns of the table: the worst and the mean over the runs, then every run."""
    shown = {"type": "rightAligned", "width": 108, "cellRenderer": "Number"}
    how = "lowest" if found.metric in SHARES else "largest, by size" if found.metric in SIGNED else "largest"
    return [
        {"field": "head_name", "headerName": "Head", "cellRenderer": "HeadLink", "width": 74, "pinned": "left"},
        {"field": "worst", "headerName": "worst", "headerTooltip": f"the {how} {found.metric} of these runs",
         "sort": "asc" if found.metric in SHARES else "desc", **shown},
        {"field": "whose", "headerName": "in run", "width": 170, "tooltipField": "whose"},
        {"field": "mean", "headerName": "mean", "headerTooltip": "mean over the runs", **shown},
        {"field": "n", "headerName": "runs", "headerTooltip": "runs that have it", "type": "rightAligned", "width": 64},
        *[
            {"field": f"run{at}", "headerName": line.run["name"], "headerTooltip": line.run["name"], **shown,
             "width": 132}
            for at, line in enumerate(found.lines)
        ],
    ]  # fmt: skip


def legend(found: Matrix, group: int) -> Any:
    """The colour bar of all lanes and what its metric means."""
    low, high = scale(found)
    kind = "div" if found.metric in SIGNED else "seq"
    groups = f" Lines part layers; {group} neighbouring heads share keys and values." if group > 1 else ""
    return html.Div(
        [
            html.Span(number(low)),
            html.Span(className=f"bar {kind}"),
            html.Span(number(high)),
            html.Span(f"{found.metric}: {found.meaning}.{groups}", className="note"),
            html.Span(
                "Share of the gap: a run's rise of loss ÷ the largest rise among these runs. Brackets: 95 % bootstrap "
                "over groups of prompts, paired with the base.",
                className="note",
            ),
        ],
        className="colour-bar",
    )


def runs_figure(found: list[dict[str, Any]], listed: list[str]) -> Any:
    """The runs that can stand side by side, each a button that adds it or takes it away, and one for all of them."""
    newest = [run["run_id"] for run in found][-MOST_RUNS:]
    words = "All runs of this base" if len(found) <= MOST_RUNS else f"The newest {MOST_RUNS} of {len(found)}"
    most = f", at most {MOST_RUNS}" if len(found) > MOST_RUNS else ""
    each = [_run(run, listed) for run in found]
    return [
        html.Details(
            [
                html.Summary(f"Runs of this base: {len(listed)} of {len(found)} chosen{most}"),
                html.Div(each, role="group", **{"aria-label": "Runs that stand side by side"}),
            ],
            className="run-list",
        )
        if found
        else html.Span("No other run is compared with A.", className="note"),
        html.Button(
            words,
            type="button",
            className="action",
            disabled=len(found) < 2,
            **{"data-go": json.dumps({"runs": ",".join(newest)})},
        ),
    ]


def _run(run: dict[str, Any], listed: list[str]) -> Any:
    name = run["run_id"]
    others = [each for each in listed if each != name]
    asked = others if name in listed else [*listed, name]
    return html.Button(
        run_label(run),
        type="button",
        className="option",
        disabled=len(asked) > MOST_RUNS,
        **{"aria-pressed": str(name in listed).lower(), "data-go": json.dumps({"runs": ",".join(asked)})},
    )


def _drawn(source: Source, selection: Selection, settled: dict[str, Any]) -> tuple[Any, ...]:
    """The lanes' data, the lines over them, the legend, and the table: rows, columns, its style and its place's."""
    found = matrix(source, selection)
    lines = [html.P(line, className="note") for line in found.said]
    if not found.lines:
        return ({}, lines, *NOTHING[2:])
    rows = table_rows(found)
    figure = matrix_figure(found, tuple(settled["shape"]), settled["group"])
    key = legend(found, settled["group"])
    return figure, lines, key, rows, columns(found), table_height(len(rows), ROW), {}


def register_matrix(app: Dash, source: Source) -> None:
    """Wire the panel to the selection."""

    def draw_runs(data: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or not selection.a:
            return None
        try:
            found = candidates(source, selection.a)
        except SourceError:
            return None
        known = {run["run_id"] for run in found}
        return tree(runs_figure(found, [name for name in selection.runs.split(",") if name in known]))

    app.callback(drawn("matrix-runs"), Input(RUN_FIELDS, "data"))(draw_runs)

    def draw(data: dict[str, Any] | None, settled: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or settled is None or not selection.runs:
            return NOTHING
        try:
            return _drawn(source, selection, settled)
        except SourceError as trouble:
            return ({}, problem(trouble), *NOTHING[2:])

    app.callback(
        Output("matrix-data", "data"),
        Output("matrix-lines", "children"),
        Output("matrix-legend", "children"),
        Output("matrix-table", "rowData"),
        Output("matrix-table", "columnDefs"),
        Output("matrix-table", "style"),
        Output("matrix-table-place", "style"),
        Input(MATRIX_FIELDS, "data"),
        State("selection", "data"),
    )(draw)
    app.clientside_callback(ClientsideFunction("sparselens", "matrix"), Input("matrix-data", "data"))
