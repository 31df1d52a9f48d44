"""The panel of the layer × head grid and the finder beside it."""

from __future__ import annotations

from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html

from sparselens.dashboards.export.link import save_buttons
from sparselens.dashboards.heads.finder import (
    ORDERS,
    TOPS,
    both,
    columns,
    grid_figure,
    grid_legend,
    inside,
    labelled,
    ranked,
    side_name,
)
from sparselens.dashboards.heads.scatter import points
from sparselens.dashboards.heads.score_list import AXES, SHOWN, list_places, shown, side_switch
from sparselens.dashboards.page import HIDDEN, chosen, panel, part, problem, switch, table, table_height
from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.selection import Heads, Selection

GRID_FIELDS = part(*SHOWN)
FINDER_FIELDS = part(*SHOWN, *AXES, "top", "order", "box", "only")


def finder_panel() -> Any:
    """The panel before anything is drawn in it."""
    return panel(
        "Finder",
        dcc.Store(id="heads-data"),
        list_places(),
        html.Div(
            [
                html.Div(
                    [html.Div(id="grid", className="grid"), html.Div(id="heads-legend")],
                    className="grid-side",
                ),
                html.Div(
                    [
                        html.Div(
                            [switch("How many", "top", TOPS), switch("Order", "order", ORDERS)],
                            className="controls",
                        ),
                        html.Div(id="finder-note"),
                        table("finder", [], "table finder"),
                    ],
                    className="finder-side",
                ),
            ],
            className="heads",
        ),
        tools=[save_buttons("heads")],
        note="layers down, heads across; a click selects the head on every page",
    )


def _brushed(source: Source, selection: Selection) -> set[str] | None:
    """Names of the heads in the rectangle of the plot; None without one."""
    if selection.box is None:
        return None
    x, y = shown(source, selection, "x"), shown(source, selection, "y")
    return inside(selection.box, points(x, selection.x_whose, y, selection.y_whose))


def _listed(only: Heads | None) -> Any:
    """That the link lists heads, and the way back to all of them."""
    if only is None:
        return None
    count = len(only.places)
    return html.P(
        [
            f"Only the {count} head{'s' if count > 1 else ''} that were listed. ",
            html.Button("All heads (Esc)", type="button", className="action", **{"data-go": '{"only":null}'}),
        ]
    )


def register_finder(app: Dash, source: Source) -> None:
    """Wire grid and finder to the selection."""

    def draw(data: dict[str, Any] | None, settled: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or settled is None or not selection.a:
            return {}, None, None
        try:
            found = shown(source, selection, "score")
        except SourceError as trouble:
            return {}, problem(trouble), None
        drawn = grid_figure(found, selection.whose, tuple(settled["shape"]), settled["group"])
        return (
            drawn,
            grid_legend(drawn, found, selection.whose),
            side_switch("whose", found.score, selection.whose),
        )

    app.callback(
        Output("heads-data", "data"),
        Output("heads-legend", "children"),
        Output("score-sides", "children"),
        Input(GRID_FIELDS, "data"),
        State("selection", "data"),
    )(draw)
    app.clientside_callback(ClientsideFunction("sparselens", "grid"), Input("heads-data", "data"))

    def rank(data: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or not selection.a:
            return [], [], HIDDEN, None
        try:
            found = shown(source, selection, "score")
            owner, named = labelled(source, selection.a, selection.b)
            among = both(_brushed(source, selection), set(selection.only.names) if selection.only else None)
        except SourceError as trouble:
            return [], [], HIDDEN, problem(trouble)
        rows = ranked(found, selection.whose, named, top=selection.top, order=selection.order, among=among)
        said = f"{len(rows)} of {len(found.of(selection.whose))} heads by {found.score.label}"
        said += f" of {side_name(found, selection.whose)}" + (", in the rectangle" if selection.box else "")
        if not owner:
            said += "; no roles: neither A nor B has an analyse roles in this trace"
        return (
            rows,
            columns(found, selection.whose, owner or "A"),
            table_height(len(rows), 26),
            [_listed(selection.only), html.P(said + ".", className="note")],
        )

    app.callback(
        Output("finder", "rowData"),
        Output("finder", "columnDefs"),
        Output("finder", "style"),
        Output("finder-note", "children"),
        Input(FINDER_FIELDS, "data"),
    )(rank)
