"""SQL: any question to the trace, read-only and capped; the query is in the URL."""

from __future__ import annotations

from time import monotonic
from typing import Any
from urllib.parse import quote

import dash_ag_grid as dag
import dash_mantine_components as dmc
from dash import Dash, Input, Output, State, html

from sparselens.dashboards.page import Page, chosen, message, panel, part, parts, problem, table_height
from sparselens.dashboards.query import Source, SourceError, bound, records
from sparselens.dashboards.selection import Selection
from sparselens.storage import schema

ROWS = 1_000
SECONDS = 10.0
LONGEST = 4_000
LIMITS = f"Ctrl + Enter · read-only, {ROWS:,} rows, {SECONDS:g} s"
SAMPLES = {
    "Heads that changed most": """SELECT layer, head, avg(write_error) AS write_error,
       avg(kept_mass) AS kept_mass
FROM diffs WHERE run_a = $a AND run_b = $b AND scope = $scope AND rows = $rows
GROUP BY layer, head ORDER BY write_error DESC LIMIT 20""",
    "What this head reads, and what was dropped": """SELECT e.q_pos, e.k_pos, t.text, e.p_base, e.p, e.kept
FROM edges e JOIN tokens t ON t.prompt_id = e.prompt_id AND t.pos = e.k_pos
WHERE e.run_id = $b AND e.prompt_id = $prompt AND e.layer = $layer AND e.head = $head
ORDER BY e.q_pos DESC, e.p_base DESC LIMIT 100""",
    "Heads that read a span from the answer": """SELECT e.layer, e.head, s.name,
       sum(e.p_base) AS base, sum(e.p) AS run
FROM edges e JOIN spans s ON s.prompt_id = e.prompt_id AND e.k_pos >= s.start AND e.k_pos < s.stop
JOIN spans a ON a.prompt_id = e.prompt_id AND a.name = 'answer'
             AND e.q_pos + 1 >= a.start AND e.q_pos + 1 < a.stop
WHERE e.run_id = $b AND e.prompt_id = $prompt AND s.name <> 'answer'
GROUP BY ALL ORDER BY base DESC LIMIT 20""",
    "Sinks: mass on the first token": """SELECT layer, head, avg(sink_mass) AS sink_mass FROM head_stats
WHERE run_id = $a AND pattern = 'executed' AND rows = 'all'
GROUP BY layer, head ORDER BY sink_mass DESC LIMIT 20""",
    "Tokens that became harder": """SELECT t.pos, t.text, a.nll AS base, b.nll AS run, b.nll - a.nll AS change
FROM predictions a JOIN predictions b USING (prompt_id, pos) JOIN tokens t USING (prompt_id, pos)
WHERE a.run_id = $a AND b.run_id = $b AND prompt_id = $prompt ORDER BY change DESC LIMIT 30""",
    "What is in the trace": """SELECT name, policy, status, n_prompts, n_tokens, seconds
FROM runs ORDER BY created_at""",
}
SQL_FIELDS = part("sql")
SAMPLE_FIELDS = part("a", "b", "prompt", "scope", "rows", "layer", "head")


def result_figure(frame: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Column definitions and rows of a result; `layer, head` columns bring a column that opens the head."""
    names = [str(name) for name in frame.columns]
    rows = [{f"c{i}": _cell(value) for i, value in enumerate(row.values())} for row in records(frame)]
    columns: list[dict[str, Any]] = [
        {"field": f"c{i}", "headerName": name, "cellRenderer": "Plain", "minWidth": 90,
         "tooltipField": f"c{i}", **({"type": "rightAligned"} if frame.dtypes.iloc[i].kind in "iuf" else {})}
        for i, name in enumerate(names)
    ]  # fmt: skip
    if "layer" in names and "head" in names:
        at, which = names.index("layer"), names.index("head")
        for row in rows:
            row["layer"], row["head"] = row[f"c{at}"], row[f"c{which}"]
        columns.insert(0, {"headerName": "open", "cellRenderer": "HeadLink", "width": 80, "pinned": "left"})
    return columns, rows


def _cell(value: Any) -> Any:
    if isinstance(value, bytes | bytearray):
        return f"{len(value)} bytes"
    return value if isinstance(value, str | int | float | bool | None) else str(value)[:LONGEST]


def layout() -> Any:
    """The page: box, result, and beside them samples and the schema."""
    return html.Div(
        [
            *parts(SQL_FIELDS, SAMPLE_FIELDS),
            html.Div(
                [
                    panel(
                        "SQL",
                        dmc.Textarea(
                            id="query",
                            autosize=True,
                            minRows=7,
                            maxRows=26,
                            classNames={"input": "sql-box"},
                            placeholder="SELECT … (one statement, read-only)",
                            **{"aria-label": "SQL query"},
                        ),
                        html.Div(
                            [
                                _run_button(),
                                html.Span(LIMITS, className="note"),
                                html.Span(id="query-state", className="note right"),
                            ],
                            className="controls",
                        ),
                        note="one statement over the tables at the side",
                    ),
                    panel("Result", html.Div(id="query-result"), tools=[html.Span(id="query-csv")]),
                ],
                className="column",
            ),
            html.Div([_samples(), panel("Tables", _tables())], className="column"),
        ],
        className="columns sql-page",
    )  # fmt: skip


def _run_button() -> Any:
    return html.Button("Run", type="button", className="primary", **{"data-action": "query"})


def _samples() -> Any:
    return panel("Samples", html.Div(id="samples"), note="about the current selection")


def _tables() -> Any:
    return html.Div(
        [
            html.Details(
                [
                    html.Summary(
                        [
                            html.Code(name),
                            html.Span(f" {len(schema.view_columns(table))} columns", className="note"),
                        ]
                    ),
                    html.P(table.meaning, className="note"),
                    html.Dl(
                        [
                            part_
                            for column in schema.view_columns(table)
                            for part_ in (
                                html.Dt([html.Code(column.name), " ", html.Small(column.sql_type.lower())]),
                                html.Dd(column.meaning + (f" ({column.unit})" if column.unit else "")),
                            )
                        ]
                    ),
                ]
            )
            for name, table in schema.PUBLIC.items()
        ],
        className="schema",
    )


def samples(selection: Selection) -> dict[str, str]:
    """The sample queries with the current selection written in."""
    names = ("a", "b", "prompt", "scope", "rows", "layer", "head")
    values = {name: getattr(selection, name) for name in names}
    return {title: bound(sql, values) for title, sql in SAMPLES.items()}


def register(app: Dash, source: Source) -> None:
    """Wire the box to the URL and the result to the box."""

    def answer(data: dict[str, Any] | None, typed: str | None) -> Any:
        selection = chosen(data)
        if selection is None or not selection.sql.strip():
            return message("Write a query or take a sample; the result appears here."), None, None, typed
        began = monotonic()
        try:
            result = source.run(selection.sql, max_rows=ROWS, timeout=SECONDS)
        except SourceError as found:
            return (
                html.Div(problem(found), className="refused", id="query-problem"),
                None,
                None,
                selection.sql,
            )
        columns, rows = result_figure(result.df())
        more = f", the first of more (cap {ROWS:,})" if result.truncated else ""
        state = f"{len(rows):,} rows{more} · {monotonic() - began:.2f} s"
        link = html.A(
            "CSV",
            href=f"/view/sql.csv?sql={quote(selection.sql)}",
            className="action",
            download="sparselens.csv",
        )
        return _grid(columns, rows), state, link, selection.sql

    app.callback(
        Output("query-result", "children"),
        Output("query-state", "children"),
        Output("query-csv", "children"),
        Output("query", "value"),
        Input(SQL_FIELDS, "data"),
        State("query", "value"),
    )(answer)

    def offer(data: dict[str, Any] | None) -> Any:
        selection = chosen(data) or Selection()
        return [
            html.Button(title, type="button", className="sample", title=sql, **{"data-sql": sql})
            for title, sql in samples(selection).items()
        ]

    app.callback(Output("samples", "children"), Input(SAMPLE_FIELDS, "data"))(offer)


def _grid(columns: list[dict[str, Any]], rows: list[dict[str, Any]]) -> Any:
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


PAGE = Page("SQL", "/sql", 3, layout, register)
