"""Runs: what is in the trace, whether it is verified, how dense, how good; choose A and B."""

from __future__ import annotations

from typing import Any

from dash import Dash, Input, Output, html

from sparselens.dashboards.access import from_own_page
from sparselens.dashboards.metric import meaning
from sparselens.dashboards.page import PAIR, Page, chosen, message, panel, problem, table, table_height
from sparselens.dashboards.query import Source, SourceError, capture_command, one_line, records
from sparselens.dashboards.verdict import verified
from sparselens.storage.notes import LONGEST, note

RUNS = """
SELECT r.run_id, coalesce(r.name, r.run_id) AS name, r.kind, r.status, r.policy, r.model, r.kernel, r.phase,
       r.off_label, r.n_prompts, r.n_tokens, r.seconds, r.verify_kernel, r.verify_logits, r.verify_calls,
       strftime(r.created_at, '%Y-%m-%d %H:%M') AS created_at, d.density, l.nll, notes.text AS note,
       r.run_id IN (SELECT run_id FROM run_prompts) AND r.kind = 'capture' AS comparable
FROM runs r
LEFT JOIN (SELECT run_id, avg(density) AS density FROM head_stats
           WHERE pattern = 'executed' AND rows = 'all' GROUP BY run_id) d USING (run_id)
LEFT JOIN (SELECT run_id, avg(nll) AS nll FROM
           (SELECT run_id, prompt_id, avg(nll) AS nll FROM predictions GROUP BY ALL) GROUP BY run_id) l
  USING (run_id)
LEFT JOIN notes USING (run_id)
WHERE r.kind <> 'note'
ORDER BY r.created_at DESC, r.run_id
"""
NUMERIC = {"type": "rightAligned", "cellRenderer": "Number"}
COLUMNS: list[dict[str, Any]] = [
    {"headerName": "Use as", "cellRenderer": "UseRun", "width": 96, "pinned": "left", "sortable": False,
     "headerTooltip": "A is the base, B the run that is looked at"},
    {"field": "name", "headerName": "Run", "minWidth": 150, "flex": 1},
    {"field": "policy", "headerName": "Policy", "minWidth": 220, "flex": 2, "cellClass": "mono",
     "headerTooltip": meaning("runs", "policy")},
    {"field": "note", "headerName": "Note", "minWidth": 160, "flex": 1, "tooltipField": "note", "editable": True,
     "cellEditor": "agLargeTextCellEditor", "cellEditorPopup": True, "cellEditorParams": {"maxLength": LONGEST},
     "headerTooltip": "Enter or a double click writes it into the trace"},
    {"field": "status", "headerName": "Status", "width": 96, "headerTooltip": meaning("runs", "status")},
    {"field": "verified", "headerName": "Verified", "width": 200, "tooltipField": "verified",
     "headerTooltip": "checks of kernel, logits and calls; what failed or was not checked is named"},
    {"field": "density", "headerName": "Density", "width": 90, **NUMERIC,
     "headerTooltip": meaning("head_stats", "density") + "; mean over heads and prompts"},
    {"field": "nll", "headerName": "NLL", "width": 80, **NUMERIC,
     "headerTooltip": "mean over prompts of the mean −ln probability of a token (nats)"},
    {"field": "n_prompts", "headerName": "Prompts", "width": 86, "type": "rightAligned"},
    {"field": "n_tokens", "headerName": "Tokens", "width": 86, "type": "rightAligned"},
    {"field": "seconds", "headerName": "Seconds", "width": 90, **NUMERIC},
    {"field": "kernel", "headerName": "Kernel", "width": 96, "headerTooltip": meaning("runs", "kernel")},
    {"field": "model", "headerName": "Model", "width": 140},
    {"field": "kind", "headerName": "Kind", "width": 86, "headerTooltip": meaning("runs", "kind")},
    {"field": "created_at", "headerName": "Started (UTC)", "width": 136},
]  # fmt: skip


def table_figure(frame: Any, a: str = "", b: str = "") -> list[dict[str, Any]]:
    """Rows of the table: the frame's, with the checks in words and which run is A or B."""
    rows = records(frame)
    for row in rows:
        row["verified"] = verified(row) if row["kind"] == "capture" else ""
        row["role"] = "A" if row["run_id"] == a else "B" if row["run_id"] == b else ""
    return rows


def layout() -> Any:
    """The page before anything is drawn in it."""
    return html.Div(
        [
            panel(
                "Runs",
                html.Div(id="runs-empty"),
                html.Div(id="runs-noted", **{"aria-live": "polite"}),
                table("runs", COLUMNS, "table page-table", row_height=30),
                note="everything in this trace, newest first; Enter or a double click writes a note",
            ),
        ],
        className="runs-page",
    )


def register(app: Dash, source: Source) -> None:
    """Wire the table to the selection."""

    def draw_runs(data: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        try:
            frame = source.frame(RUNS)
        except SourceError as found:
            return [], {"display": "none"}, problem(found)
        if frame.empty:
            return (
                [],
                {"display": "none"},
                message("This trace has no run yet.", capture_command(source.path)),
            )
        rows = table_figure(frame, selection.a if selection else "", selection.b if selection else "")
        return rows, table_height(len(rows), 30), None

    app.callback(
        Output("runs", "rowData"),
        Output("runs", "style"),
        Output("runs-empty", "children"),
        Input(PAIR, "data"),
    )(draw_runs)

    def take_note(edits: list[dict[str, Any]] | None) -> Any:
        if not from_own_page():
            return message("Notes are taken from this server's own pages alone.")
        return [noted(source, edit["data"]["run_id"], edit["value"] or "") for edit in edits or []]

    app.callback(
        Output("runs-noted", "children"), Input("runs", "cellValueChanged"), prevent_initial_call=True
    )(take_note)


def noted(source: Source, run: str, text: str) -> Any:
    """Write a note into the trace; the line that says so, or why it could not be."""
    if source.path.is_file():
        return message(f"{source.path} is a packed trace: notes are written into a trace's folder.")
    try:
        about = note(source.path, run, text)
    except ValueError as found:
        return message(one_line(found))
    name = about.record.name or about.run_id
    return html.P(f"Noted on {name}." if text.strip() else f"No note on {name} any more.", className="note")


PAGE = Page("Runs", "/runs", 8, layout, register)
