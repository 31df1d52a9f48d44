"""The panel of two scores against each other."""

from __future__ import annotations

from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, dcc, html

from sparselens.dashboards.export.link import save_buttons
from sparselens.dashboards.heads.finder import inside, labelled
from sparselens.dashboards.heads.scatter import axis_title, figure, points, sentence
from sparselens.dashboards.heads.score_list import AXES, axis_places, shown, side_switch
from sparselens.dashboards.page import chosen, panel, part, problem
from sparselens.dashboards.query import Source, SourceError

SCATTER_FIELDS = part("a", "b", "prompt", "over", "scope", "rows", *AXES, "box", "layer", "head")
EMPTY = {"data": [], "layout": {"height": 400}}


def scatter_panel() -> Any:
    """The panel before anything is drawn in it."""
    return panel(
        "Two scores",
        axis_places(),
        html.Div(
            dcc.Graph(
                id="scatter",
                figure=EMPTY,
                config={
                    "displaylogo": False,
                    "modeBarButtonsToRemove": ["lasso2d", "autoScale2d", "toImage"],
                },
                className="scatter",
            ),
            role="group",
            **{"aria-label": "Scatter plot of two scores of every head; the finder holds the numbers"},
        ),
        html.Div(id="scatter-note", className="notes"),
        tools=[save_buttons()],
        note="click selects a head, drag brushes the table",
    )


def _clear(brushed: bool) -> Any:
    if not brushed:
        return None
    return html.Button(
        "Clear the rectangle (Esc)", type="button", className="action", **{"data-go": '{"box":null}'}
    )


def register_scatter(app: Dash, source: Source) -> None:
    """Wire the plot to the selection, and clicks and rectangles in it to the URL."""

    def draw(data: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or not selection.a or not selection.x:
            return EMPTY, None, None, None
        try:
            x, y = shown(source, selection, "x"), shown(source, selection, "y")
            _, named = labelled(source, selection.a, selection.b)
        except SourceError as trouble:
            return EMPTY, problem(trouble), None, None
        found = points(x, selection.x_whose, y, selection.y_whose)
        titles = axis_title(x, selection.x_whose), axis_title(y, selection.y_whose)
        drawn = figure(found, titles, named, selection.head_name, selection.box)
        said: list[Any] = [
            html.P([sentence(found, inside(selection.box, found)), _clear(selection.box is not None)])
        ]
        for axis, each, side in (("x", x, selection.x_whose), ("y", y, selection.y_whose)):
            what = f"{axis}: {each.score.label}, {each.score.meaning}. {each.over.get(side, 'Not in the trace')}."
            said.append(html.P(what, className="note"))
        return (
            drawn,
            said,
            side_switch("x_whose", x.score, selection.x_whose),
            side_switch("y_whose", y.score, selection.y_whose),
        )

    app.callback(
        Output("scatter", "figure"),
        Output("scatter-note", "children"),
        Output("x-sides", "children"),
        Output("y-sides", "children"),
        Input(SCATTER_FIELDS, "data"),
    )(draw)
    for function, prop in (("point", "clickData"), ("brush", "selectedData")):
        app.clientside_callback(
            ClientsideFunction("sparselens", function), Input("scatter", prop), prevent_initial_call=True
        )
