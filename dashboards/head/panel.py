"""The map and the text of the Head page: what a token reads or who reads it, by attention or by value."""

from __future__ import annotations

from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, State, html

from sparselens.dashboards.drawing import drawn, place, tree
from sparselens.dashboards.export.link import save_buttons
from sparselens.dashboards.head.heatmap import how, map_figures, maps
from sparselens.dashboards.head.weigh import DEFINITION, NOT_IMPORTANCE
from sparselens.dashboards.page import chosen, panel, part, problem, switch, text_place
from sparselens.dashboards.query import Source, SourceError, records
from sparselens.dashboards.span import SPANS, span_links

TOKENS = "SELECT pos, text, is_special FROM tokens WHERE prompt_id = $prompt ORDER BY pos"
FIRST_QUERY = """
SELECT coalesce((SELECT start - 1 FROM spans WHERE prompt_id = $prompt AND name = 'answer' AND start > 0),
                (SELECT n_tokens - 1 FROM prompts WHERE prompt_id = $prompt)) AS q
"""
SINKS = """
SELECT run_id, sink_mass FROM head_stats
WHERE run_id IN ($a, $b) AND prompt_id = $prompt AND pattern = 'executed' AND rows = 'all'
  AND layer = $layer AND head = $head
"""
READ_FIELDS = part("prompt")
"""What is read follows the URL in the browser: moving to another head draws no token anew."""
MAP_FIELDS = part("a", "b", "prompt", "layer", "head", "qs", "ks", "hide", "scale", "weigh")


def map_panel() -> Any:
    """The maps before anything is drawn in them."""
    return panel(
        "Map",
        place("maps", className="maps"),
        html.P(id="map-readout", className="readout", **{"aria-live": "polite"}),
        html.P(id="map-how", className="note"),
        tools=[
            html.Button("Around the query", type="button", className="action", **{"data-action": "around"}),
            html.Button(
                "Whole map", type="button", className="action", **{"data-go": '{"qs":null,"ks":null}'}
            ),
            save_buttons("map"),
        ],
        note="queries (destination) down, keys (source) across; drag to zoom",
    )


def text_panel() -> Any:
    """The text before anything is drawn in it."""
    return panel(
        "Text",
        html.Div(id="reading-spans", className="spans"),
        html.P(id="reads", className="readout", **{"aria-live": "polite"}),
        html.Ul(
            id="top-keys", className="chips", tabIndex="0", **{"aria-label": "The strongest of them, A → B"}
        ),
        text_place("The prompt's tokens, shaded by attention"),
        html.Details(
            [html.Summary(NOT_IMPORTANCE), html.P(DEFINITION, className="note")], className="defined"
        ),
        tools=[
            switch("Direction", "way", [("reads", "What it reads"), ("readers", "Who reads it")]),
            switch("Run", "side", [("b", "B"), ("a", "A"), ("diff", "B − A")]),
            save_buttons("reads"),
        ],
        note="hover a token; click locks it",
    )


def reading_figure(frame: Any, spans: list[dict[str, Any]], start: int) -> dict[str, Any]:
    """The prompt's tokens as plain data; the browser asks for the reads of a token when it is hovered."""
    rows = records(frame)
    return {
        "kind": "attention",
        "texts": [row["text"] if row["text"] is not None else "▯" for row in rows],
        "special": [bool(row["is_special"]) for row in rows],
        "spans": spans,
        "start": start,
    }


def register_text(app: Dash, source: Source) -> None:
    """Wire the text to the selection."""

    def draw_text(data: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or not selection.prompt:
            return None, None
        try:
            spans = source.records(SPANS, prompt=selection.prompt)
            start = source.first(FIRST_QUERY, prompt=selection.prompt).get("q") or 0
            return reading_figure(source.frame(TOKENS, prompt=selection.prompt), spans, start), span_links(
                spans
            )
        except SourceError as found:
            return None, problem(found)

    app.callback(
        Output("reading-data", "data"), Output("reading-spans", "children"), Input(READ_FIELDS, "data")
    )(draw_text)
    app.clientside_callback(ClientsideFunction("sparselens", "text"), Input("reading-data", "data"))


def register_maps(app: Dash, source: Source) -> None:
    """Wire the maps to the selection."""

    def draw_maps(data: dict[str, Any] | None, settled: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or settled is None or selection.layer is None or not selection.prompt:
            return None, None
        at = {name: getattr(selection, name) for name in ("a", "b", "prompt", "layer", "head")}
        try:
            found = maps(source, selection)
            masses = {row["run_id"]: row["sink_mass"] for row in source.records(SINKS, **at)}
        except SourceError as trouble:
            return tree(problem(trouble)), None
        sinks = {"a": masses.get(selection.a), "b": masses.get(selection.b)}
        hidden = " Key 0's column is hidden, its mass is printed." if selection.hide == "1" else ""
        words = how(next(iter(found.values())).cells, selection.weigh)
        return tree(map_figures(found, selection, sinks, settled["seen"])), words + hidden

    app.callback(
        drawn("maps"),
        Output("map-how", "children"),
        Input(MAP_FIELDS, "data"),
        State("selection", "data"),
    )(draw_maps)
