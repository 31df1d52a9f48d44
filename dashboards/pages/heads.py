"""Heads: every head by any score. The grid, a finder, two scores against each other, the maps of one layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dash import Dash, Input, Output, html

from sparselens.dashboards.heads.finder import NAMES, labelled
from sparselens.dashboards.heads.finder_panel import FINDER_FIELDS, GRID_FIELDS, finder_panel, register_finder
from sparselens.dashboards.heads.layer_panel import LAYER_FIELDS, layer_panel, register_layer
from sparselens.dashboards.heads.scatter_panel import SCATTER_FIELDS, register_scatter, scatter_panel
from sparselens.dashboards.heads.score import preferred, rows_there, scores, whose
from sparselens.dashboards.heads.score_list import LIST_FIELDS, SHOWN, register_lists, shown
from sparselens.dashboards.page import Page, chosen, part, parts
from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.selection import SIDES, Selection
from sparselens.dashboards.verdict import number

HEAD_FIELDS = part(*SHOWN, "layer", "head")
ROLES = (
    "head_scores.retrieval",
    "head_scores.induction",
    "head_scores.previous_token",
    "head_stats.sink_mass",
)


def settle(source: Source, selection: Selection, notices: list[str]) -> Selection:
    """The selection with score, axes, sides and rows that the trace has; what was asked in vain is said."""
    found = scores(source, selection.a, selection.b) if selection.a else {}
    score = preferred(found, selection.score)
    y = preferred(found, selection.y)
    x = preferred(found, selection.x, ROLES, but=y)
    for asked, taken in ((selection.score, score), (selection.x, x), (selection.y, y)):
        if asked and asked != taken:
            notices.append(f"There is no score {asked[:60]!r} for these runs; {taken!r} was chosen.")
    sides: dict[str, Any] = {
        "whose": whose(found.get(score), selection.whose or "b"),
        "x_whose": whose(found.get(x), selection.x_whose or "a"),
        "y_whose": whose(found.get(y), selection.y_whose or "b"),
    }
    rows = selection.rows
    if not rows and selection.a:
        there = rows_there(source, selection)
        rows = next((name for name in ("span:answer", "all", *there) if name in there), "")
    return replace(selection, score=score, x=x, y=y, rows=rows, **sides)


def layout() -> Any:
    """The page before anything is drawn in it."""
    return html.Div(
        [
            *parts(LIST_FIELDS, GRID_FIELDS, FINDER_FIELDS, SCATTER_FIELDS, LAYER_FIELDS, HEAD_FIELDS),
            html.Header(
                [
                    html.H1("Heads"),
                    html.Div(id="chosen-head", className="chosen-head", **{"aria-live": "polite"}),
                ],
                className="page-head",
            ),
            html.Div([finder_panel(), scatter_panel()], className="columns heads-columns"),
            layer_panel(),
        ],
        className="heads-page",
    )


def _register_chosen(app: Dash, source: Source) -> None:
    def name_head(data: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or selection.layer is None or not selection.a:
            return None
        try:
            found = shown(source, selection, "score")
            _, named = labelled(source, selection.a, selection.b)
        except SourceError:
            return None
        role = named.get((selection.layer, selection.head or 0), "")
        at = next((row for row in found.rows if row["head_name"] == selection.head_name), {})
        sides = [f"{NAMES[side]} {number(at[side])}" for side in SIDES if at.get(side) is not None]
        said = f" {found.score.label}: {', '.join(sides) or 'not in the trace'}" + (
            f" · {role}" if role else ""
        )
        links = (("Open head", "/head"), ("Compare", "/"))
        return [
            html.B(selection.head_name, className="mono"),
            html.Span(said, className="note"),
            *[html.A(text, href=path, **{"data-page": path}) for text, path in links],
        ]

    app.callback(Output("chosen-head", "children"), Input(HEAD_FIELDS, "data"))(name_head)


def register(app: Dash, source: Source) -> None:
    """Wire the panels to the selection."""
    register_lists(app, source)
    register_finder(app, source)
    register_scatter(app, source)
    register_layer(app, source)
    _register_chosen(app, source)


PAGE = Page("Heads", "/heads", 1, layout, register, settle)
