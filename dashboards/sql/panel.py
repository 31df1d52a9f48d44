"""The panels of the SQL page: the editor, the result in one of its three forms, samples, tables."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import dash_ag_grid as dag
from dash import dcc, html

from sparselens.dashboards.export.link import save_buttons
from sparselens.dashboards.page import message, panel, switch, table_height
from sparselens.dashboards.picker import filled
from sparselens.dashboards.selection import MOST_HEADS, Selection
from sparselens.dashboards.sql.result import (
    Heads,
    axes,
    chart_figure,
    has_heads,
    heads_figure,
    numeric,
    result_figure,
)
from sparselens.storage import schema

SHOWN_HEADS = 60  # names written out


def editor(limits: str) -> Any:
    """The field, its colours under it, the names that fit what is typed."""
    return panel(
        "SQL",
        html.Div(
            [
                html.Pre(id="query-colours", className="sql-colours", **{"aria-hidden": "true"}),
                html.Label("SQL query", htmlFor="query", className="unseen"),
                dcc.Textarea(
                    id="query",
                    className="sql-box",
                    placeholder="SELECT … (one statement, read-only)",
                    spellCheck=False,
                ),
                html.Ul(id="query-names", className="sql-names", hidden=True, role="listbox"),
            ],
            className="editor",
        ),
        html.Div(
            [
                html.Button("Run", type="button", className="primary", **{"data-action": "query"}),
                html.Span(limits, className="note"),
                html.Span(id="query-state", className="note right"),
            ],
            className="controls",
        ),
        note="one statement over the tables at the side",
    )


def result() -> Any:
    """The panel of the result."""
    return panel(
        "Result",
        html.Div(id="query-axes", className="controls"),
        html.Div(id="query-result"),
        dcc.Store(id="query-heads"),
        tools=[
            switch("Show as", "show", [("table", "Table"), ("chart", "Chart"), ("heads", "Heads")]),
            html.Span(id="query-files", className="with-steps"),
        ],
    )


def side() -> Any:
    """Samples, saved queries, tables."""
    saved = [
        html.Div(id="saved-queries"),
        html.Button("Save this query", type="button", className="action", **{"data-action": "save-query"}),
    ]
    return html.Div(
        [
            panel("Samples", html.Div(id="samples"), note="about the current selection"),
            panel("Saved", *saved, note="in this browser; a link holds a query too"),
            panel("Tables", *_tables(), note="a click on a name writes it"),
        ],
        className="column",
    )


def tables() -> list[dict[str, Any]]:
    """The tables as plain data: hundreds of columns as components would take the browser seconds."""
    return [
        {
            "name": name,
            "meaning": table.meaning,
            "columns": [
                [column.name, column.sql_type.lower(), column.unit, column.meaning]
                for column in schema.view_columns(table)
            ],
        }
        for name, table in schema.PUBLIC.items()
    ]


def _tables() -> list[Any]:
    return [dcc.Store(id="tables-data", data=tables()), html.Div(id="tables", className="schema")]


def files(sql: str) -> Any:
    """Links to the whole result as files."""
    return [
        html.A(
            label,
            href=f"/view/sql.{ending}?sql={quote(sql)}",
            className="action",
            download=f"sparselens.{ending}",
        )
        for label, ending in (("CSV", "csv"), ("Parquet", "parquet"))
    ]


@dataclass(frozen=True)
class Drawn:
    """A result in one of its forms: what is put into the panel, the lists of its axes, the grid's data."""

    body: Any
    lists: Any = None
    grid: dict[str, Any] | None = None


def drawn(frame: Any, selection: Selection, group: int) -> Drawn:
    """The result in the form that is chosen; a message where it has none."""
    if selection.show == "table":
        return Drawn(table(frame))
    x, y = axes(frame, selection.cx, selection.cy)
    if selection.show == "chart":
        if not y:
            return Drawn(message("A chart needs a numeric column; this result has none."))
        lists = [_axis("cx", "x", frame, x), _axis("cy", "y", frame, y), save_buttons()]
        return Drawn(_graph(frame, x, y, selection.sql), lists)
    if not has_heads(frame):
        return Drawn(message("Heads need the columns layer and head, both whole numbers."))
    try:
        found = heads_figure(frame, y, group)
    except ValueError as problem:
        return Drawn(message(f"{problem}."))
    return Drawn(_heads(found), [_axis("cy", "colour", frame, y)] if y else None, found.grid)


def table(frame: Any) -> Any:
    """The rows as a table."""
    columns, rows = result_figure(frame)
    return dag.AgGrid(
        id="result",
        columnDefs=columns,
        rowData=rows,
        columnSize="autoSize",
        defaultColDef={"sortable": True, "resizable": True},
        dashGridOptions={
            "rowHeight": 26,
            "headerHeight": 30,
            "animateRows": False,
            "enableCellTextSelection": True,
        },
        className="table page-table",
        style=table_height(len(rows), 26),
    )


def _graph(frame: Any, x: str, y: str, sql: str) -> Any:
    plot = dcc.Graph(figure=chart_figure(frame, x, y), config={"displaylogo": False}, className="scatter")
    said = f"{y} over {x}, a point a row"
    query = {"aria-label": said, "data-caption": f"{said}. SQL: {sql}"}
    return html.Div(plot, role="img", id="query-chart", **query)


def _axis(field: str, label: str, frame: Any, chosen: str) -> Any:
    """A list of the numeric columns."""
    return filled(field, label, f"column of {label}", numeric(frame), chosen)


def _heads(found: Heads) -> Any:
    """The place of the grid, and the heads by name."""
    return html.Div(
        [
            html.Div(id="grid", className="grid"),
            html.P(found.note, className="note"),
            html.P([*_open(found.names), " ", *_written_out(found.names)]),
        ]
    )


def _open(names: list[str]) -> list[Any]:
    """Buttons that lead to these heads."""
    kinds = {"type": "button", "className": "action"}
    chosen = html.Button("Open the chosen head", **kinds, **{"data-page": "/head"})
    if not 0 < len(names) <= MOST_HEADS:
        return [chosen]
    listed = json.dumps({"only": ",".join(names), "top": 0})
    return [
        html.Button("Open these heads", **kinds, **{"data-page": "/heads", "data-go": listed}),
        " ",
        chosen,
    ]


def _written_out(names: list[str]) -> list[Any]:
    """The first names, fit for a policy's parameter."""
    more = f" … {len(names) - SHOWN_HEADS} more" if len(names) > SHOWN_HEADS else ""
    return [
        html.Code(",".join(names[:SHOWN_HEADS]), className="command-words"),
        html.Span(f"{more} in the order of the rows, for a policy's full=[…]", className="note"),
    ]
