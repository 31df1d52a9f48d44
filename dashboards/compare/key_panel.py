"""The panel of the keys that the chosen head reads from the chosen rows."""

from __future__ import annotations

from typing import Any

from dash import Dash, Input, Output, html

from sparselens.dashboards.compare.brush import active, rows_of, words
from sparselens.dashboards.compare.key import (
    BRUSH_ROWS,
    KEY_ROWS,
    KEYS,
    MOST_KEYS,
    MOST_ROWS,
    QUERIES,
    keys_figure,
)
from sparselens.dashboards.page import chosen, message, panel, part, parts, problem
from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.selection import Selection, Window

KEY_FIELDS = part("a", "b", "prompt", "over", "rows", "layer", "head", "q", "brush")


def keys_panel() -> Any:
    """The panel before anything is drawn in it."""
    return panel(
        "Keys",
        *parts(KEY_FIELDS),
        html.P(
            "Stored keys of this head, strongest in BASE first: BASE → RUN probability. Struck through: "
            "dropped by the policy. Click a token above to choose the row that predicts it.",
            className="note",
        ),
        html.Div(
            id="keys",
            tabIndex="0",
            role="group",
            **{"aria-label": "Keys of the chosen head, strongest first"},
        ),
        tools=[
            html.Span(id="keys-head", className="head-name"),
            html.A("Open head", href="/head", **{"data-page": "/head"}),
        ],
        note="what the head reads",
    )


def _drawn(source: Source, selection: Selection) -> Any:
    asked: dict[str, Any] = {name: getattr(selection, name) for name in ("prompt", "layer", "head")}
    asked["b"] = selection.b or selection.a
    brush = active(selection) if selection.q is None else None
    if brush is not None:
        at = rows_of(brush) or Window(0, 0)
        rows = source.records(BRUSH_ROWS, first=at.start, stop=at.stop, most=MOST_ROWS, **asked)
        which = f"the rows of {words(brush)}"
    else:
        rows = source.records(KEY_ROWS, rows=selection.rows, q=selection.q, most=MOST_ROWS, **asked)
        which = f"query {selection.q}" if selection.q is not None else selection.rows
    if not rows:
        return message(f"No edges of {selection.head_name} are stored for {which}.")
    found = [row["q_pos"] for row in rows]
    keys = source.records(KEYS, queries=found, most=MOST_KEYS, **asked)
    queries = source.records(QUERIES, prompt=selection.prompt, queries=found)
    drawn = keys_figure(rows, keys, {row["pos"]: row for row in queries})
    return drawn if brush is None else [_brushed(len(rows), rows[0]["n_rows"], which), *drawn]


def _brushed(shown: int, there: int, which: str) -> Any:
    """Which of the brushed rows are shown."""
    some = (
        f"The {shown} of them with the largest write error, of {there}" if shown < there else f"All {there}"
    )
    return html.P(f"{which.capitalize()}. {some}.", className="note")


def register_keys(app: Dash, source: Source) -> None:
    """Wire the panel to the selection."""

    def draw_keys(data: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or selection.layer is None or not selection.prompt:
            return None, None
        try:
            return _drawn(source, selection), selection.head_name
        except SourceError as trouble:
            return problem(trouble), selection.head_name

    app.callback(Output("keys", "children"), Output("keys-head", "children"), Input(KEY_FIELDS, "data"))(
        draw_keys
    )
