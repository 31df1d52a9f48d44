"""SQL: any question to the trace, read-only and capped; the query is in the URL."""

from __future__ import annotations

from time import monotonic
from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, State, html

from sparselens.dashboards.page import Page, chosen, message, part, parts, problem
from sparselens.dashboards.query import FILE_ROWS, Source, SourceError, bound
from sparselens.dashboards.selection import Selection
from sparselens.dashboards.sql.panel import drawn, editor, files, result, side
from sparselens.storage.box import MEMORY

ROWS = 1_000
SECONDS = 10.0
CAPS = f"{ROWS:,} rows (files {FILE_ROWS:,}) · {SECONDS:g} s · {MEMORY} of memory"
LIMITS = f"Ctrl + Enter · read-only · {CAPS}"
NOTHING = "Write a query or take a sample; the result appears here."
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
SQL_FIELDS = part("sql", "show", "cx", "cy")
SAMPLE_FIELDS = part("a", "b", "prompt", "scope", "rows", "layer", "head")


def layout() -> Any:
    """The page: editor, result, and beside them samples, saved queries and the schema."""
    return html.Div(
        [*parts(SQL_FIELDS, SAMPLE_FIELDS), html.Div([editor(LIMITS), result()], className="column"), side()],
        className="columns sql-page",
    )


def samples(selection: Selection) -> dict[str, str]:
    """The sample queries with the current selection written in."""
    names = ("a", "b", "prompt", "scope", "rows", "layer", "head")
    values = {name: getattr(selection, name) for name in names}
    return {title: bound(sql, values) for title, sql in SAMPLES.items()}


def register(app: Dash, source: Source) -> None:
    """Wire the field to the URL and the result to the field."""

    def answer(data: dict[str, Any] | None, typed: str | None, settled: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or not selection.sql.strip():
            return message(NOTHING), None, None, None, None, typed
        began = monotonic()
        try:
            found = source.ask(selection.sql, max_rows=ROWS, timeout=SECONDS)
        except SourceError as trouble:
            refused = html.Div(problem(trouble), className="refused", id="query-problem")
            return refused, None, None, None, None, selection.sql
        frame = found.df()
        more = f", the first of more (cap {ROWS:,})" if found.truncated else ""
        state = f"{len(frame):,} rows{more} · {monotonic() - began:.2f} s"
        made = drawn(frame, selection, (settled or {}).get("group", 0))
        return made.body, made.lists, made.grid, state, files(selection.sql), selection.sql

    app.callback(
        Output("query-result", "children"),
        Output("query-axes", "children"),
        Output("query-heads", "data"),
        Output("query-state", "children"),
        Output("query-files", "children"),
        Output("query", "value"),
        Input(SQL_FIELDS, "data"),
        State("query", "value"),
        State("selection", "data"),
    )(answer)

    def offer(data: dict[str, Any] | None) -> Any:
        selection = chosen(data) or Selection()
        return [
            html.Button(title, type="button", className="sample", title=sql, **{"data-sql": sql})
            for title, sql in samples(selection).items()
        ]

    app.callback(Output("samples", "children"), Input(SAMPLE_FIELDS, "data"))(offer)
    written = ClientsideFunction("sparselens", "written")
    app.clientside_callback(written, Input("query", "value"), State("tables-data", "data"))
    app.clientside_callback(ClientsideFunction("sparselens", "resultHeads"), Input("query-heads", "data"))


PAGE = Page("SQL", "/sql", 9, layout, register)
