"""The panel of several runs side by side: a lane of heads a run, and the heads by their worst and mean."""

from __future__ import annotations

import json
from typing import Any

import dash_mantine_components as dmc
from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html

from sparselens.dashboards.compare.matrix import Matrix, candidates, matrix, matrix_figure, scale, table_rows
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
        html.Div(
            [
                dmc.MultiSelect(
                    id="matrix-runs",
                    data=[],
                    value=[],
                    searchable=True,
                    clearable=True,
                    maxValues=MOST_RUNS,
                    size="xs",
                    className="wide",
                    placeholder=f"Two to {MOST_RUNS} runs of this base",
                    nothingFoundMessage="no other run is compared with A",
                    **{"aria-label": "Runs that stand side by side"},
                ),
                html.Span(id="matrix-all"),
            ],
            className="controls matrix-runs",
        ),
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


def _lists(source: Source, selection: Selection) -> tuple[Any, ...]:
    """The runs that can be chosen, those that are, and a button for all of them."""
    found = candidates(source, selection.a)
    known = {run["run_id"] for run in found}
    first = [run["run_id"] for run in found][-MOST_RUNS:]
    words = "All runs of this base" if len(found) <= MOST_RUNS else f"The newest {MOST_RUNS} of {len(found)}"
    every = html.Button(
        words,
        type="button",
        className="action",
        disabled=len(found) < 2,
        **{"data-go": json.dumps({"runs": ",".join(first)})},
    )
    lists = [{"value": run["run_id"], "label": run_label(run)} for run in found]
    return lists, [name for name in selection.runs.split(",") if name in known], every


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

    def fill_runs(data: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        try:
            return _lists(source, selection) if selection is not None and selection.a else ([], [], None)
        except SourceError:
            return [], [], None

    app.callback(
        Output("matrix-runs", "data"),
        Output("matrix-runs", "value"),
        Output("matrix-all", "children"),
        Input(RUN_FIELDS, "data"),
    )(fill_runs)
    app.clientside_callback(
        ClientsideFunction("sparselens", "chooseRuns"),
        Input("matrix-runs", "value"),
        State("matrix-runs", "data"),
        prevent_initial_call=True,
    )

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
