"""The panels about the sink tokens of one prompt: strips of layers and tokens, the text, the table."""

from __future__ import annotations

from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, State, html

from sparselens.dashboards.export.link import save_buttons
from sparselens.dashboards.head.heatmap import LENGTH
from sparselens.dashboards.page import (
    HIDDEN,
    chosen,
    panel,
    part,
    problem,
    switch,
    table,
    table_height,
    text_place,
)
from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.selection import Selection
from sparselens.dashboards.sinks.sink import (
    EDGE,
    RECEIVED,
    SINK_TOKENS,
    TEXT,
    plain_lists,
    text_figure,
    token_rows,
)
from sparselens.dashboards.sinks.strip import strip_figures, strips

TOKEN_FIELDS = part("a", "b", "prompt")
STRIP_FIELDS = part("a", "b", "prompt", "strip", "scale")
TEXT_FIELDS = part("a", "b", "prompt", "among", "layer")
NUMERIC = {"type": "rightAligned", "cellRenderer": "Number", "width": 96}
COLUMNS: list[dict[str, Any]] = [
    {"field": "pos", "headerName": "Token", "cellRenderer": "TokenLink", "width": 130, "pinned": "left"},
    {"field": "fate", "headerName": "What it is", "width": 150},
    {"field": "layers_a", "headerName": "Layers in A", "minWidth": 110, "flex": 1, "tooltipField": "layers_a"},
    {"field": "layers_b", "headerName": "Layers in B", "minWidth": 110, "flex": 1, "tooltipField": "layers_b"},
    {"field": "received_a", "headerName": "received A", **NUMERIC,
     "headerTooltip": "largest mass it receives in a layer, mean over heads, ÷ the queries that can see it"},
    {"field": "received_b", "headerName": "received B", **NUMERIC},
    {"field": "norm_a", "headerName": "norm A", **NUMERIC,
     "headerTooltip": "largest residual norm ÷ the layer's median over later tokens that are no sinks"},
    {"field": "norm_b", "headerName": "norm B", **NUMERIC},
    {"field": "write_a", "headerName": "write A", **NUMERIC,
     "headerTooltip": "‖W_O v‖, mean over heads and over the layers where it sinks, ÷ the median of the others"},
    {"field": "write_b", "headerName": "write B", **NUMERIC},
]  # fmt: skip


def strip_panel() -> Any:
    """The strips before anything is drawn in them."""
    return panel(
        "Layers and tokens",
        html.Div(id="strips"),
        html.P(id="strip-readout", className="readout", **{"aria-live": "polite"}),
        tools=[
            switch("Shown", "strip", [("received", "Mass received"), ("norm", "Residual norm")]),
            switch("Scale", "scale", [("sqrt", "√"), ("linear", "linear"), ("log", "log")]),
            save_buttons("strip"),
        ],
        note="layers down, positions across; a click selects layer and token",
    )


def text_panel() -> Any:
    """The text before it is there."""
    return panel(
        "Text",
        text_place("The prompt's tokens, shaded by the mass they receive, sink tokens framed"),
        html.P(id="text-legend", className="note legend"),
        html.P(
            [
                html.Span("sink in A and B", className="token sink both"), " ",
                html.Span("in A only", className="token sink lost"), " ",
                html.Span("in B only", className="token sink new"),
            ],
            className="note legend",
        ),
        tools=[
            switch("Shade by", "shade", [("diff", "B − A"), ("a", "A"), ("b", "B")]),
            switch("Layers", "among", [("any", "Any layer"), ("layer", "This layer")]),
        ],
        note="mass received",
    )  # fmt: skip


def token_panel() -> Any:
    """The table before anything is in it."""
    return panel(
        "Sink tokens",
        html.Div(id="sink-note"),
        table("sink-tokens", COLUMNS),
        note="of this prompt",
    )


def register_tokens(app: Dash, source: Source) -> None:
    """Wire the table and the text to the selection."""

    def list_tokens(data: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or not selection.prompt:
            return [], [], HIDDEN, None
        try:
            found = _sinks(source, selection)
        except SourceError as trouble:
            return [], [], HIDDEN, problem(trouble)
        rows = token_rows(found, pair=bool(selection.b))
        note = (
            f"{len(rows)} tokens receive more than {RECEIVED:g} of the attention of the queries that can see them, in "
            f"some layer; the last eighth of the prompt (at least {EDGE} tokens) is not judged."
        )
        shown = [column for column in COLUMNS if selection.b or not column["field"].endswith("_b")]
        return rows, shown, table_height(len(rows), 26), html.P(note, className="note")

    app.callback(
        Output("sink-tokens", "rowData"),
        Output("sink-tokens", "columnDefs"),
        Output("sink-tokens", "style"),
        Output("sink-note", "children"),
        Input(TOKEN_FIELDS, "data"),
    )(list_tokens)

    def draw_text(data: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or not selection.prompt:
            return None
        asked = {name: getattr(selection, name) for name in ("a", "prompt", "among", "layer")}
        try:
            rows = source.records(TEXT, b=selection.b or None, **asked)
            found = _sinks(source, selection)
        except SourceError:
            return None
        layer = selection.layer if selection.among == "layer" else None
        return text_figure(rows, found, pair=bool(selection.b), layer=layer)

    app.callback(Output("sink-text-data", "data"), Input(TEXT_FIELDS, "data"))(draw_text)
    app.clientside_callback(ClientsideFunction("sparselens", "text"), Input("sink-text-data", "data"))


def _sinks(source: Source, selection: Selection) -> list[dict[str, Any]]:
    asked = {"a": selection.a, "b": selection.b or None, "prompt": selection.prompt}
    return plain_lists(source.records(SINK_TOKENS, received=RECEIVED, edge=EDGE, **asked))


def register_strips(app: Dash, source: Source) -> None:
    """Wire the strips to the selection."""

    def draw(data: dict[str, Any] | None, settled: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or settled is None or not selection.prompt:
            return None
        try:
            found = strips(source, selection)
            length = source.first(LENGTH, prompt=selection.prompt)
        except SourceError as trouble:
            return problem(trouble)
        return strip_figures(found, selection, int(length["n"]), settled["seen"])

    app.callback(Output("strips", "children"), Input(STRIP_FIELDS, "data"), State("selection", "data"))(draw)
    app.clientside_callback(ClientsideFunction("sparselens", "shown"), Input("strips", "children"))
