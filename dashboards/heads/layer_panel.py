"""The panel of one layer: the small maps of all its heads."""

from __future__ import annotations

from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, State, html

from sparselens.dashboards.export.link import save_buttons
from sparselens.dashboards.heads.multiple import layer_maps, multiples_figure, multiples_note, pool_of
from sparselens.dashboards.heads.score_list import SHOWN, shown
from sparselens.dashboards.page import chosen, panel, part, problem, switch
from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.verdict import number

LAYER_FIELDS = part(*SHOWN, "layer", "hide", "scale")


def layer_panel() -> Any:
    """The panel before anything is drawn in it."""
    return panel(
        "One layer",
        html.Div(id="multiples"),
        html.P(id="multiples-note", className="note"),
        tools=[
            switch("Scale", "scale", [("sqrt", "√"), ("linear", "linear"), ("log", "log")]),
            switch("Sinks", "hide", [("0", "Show sinks"), ("1", "Hide sinks")]),
            save_buttons("layer"),
        ],
        note="maps of all its heads, A above B; arrow keys move",
    )


def register_layer(app: Dash, source: Source) -> None:
    """Wire the maps to the selection."""

    def draw(data: dict[str, Any] | None, settled: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or settled is None or selection.layer is None or not selection.prompt:
            return None, None
        try:
            found = layer_maps(source, selection)
            pool = pool_of(source, selection)
            score = shown(source, selection, "score")
        except SourceError as trouble:
            return problem(trouble), None
        texts = {
            row["head"]: number(row[selection.whose])
            for row in score.rows
            if row["layer"] == selection.layer and row.get(selection.whose) is not None
        }
        drawn = multiples_figure(found, selection, texts, settled["group"], settled["seen"])
        return drawn, multiples_note(found, selection, pool)

    app.callback(
        Output("multiples", "children"),
        Output("multiples-note", "children"),
        Input(LAYER_FIELDS, "data"),
        State("selection", "data"),
    )(draw)
    app.clientside_callback(ClientsideFunction("sparselens", "shown"), Input("multiples", "children"))
