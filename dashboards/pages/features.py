"""Features: which SAE features a policy keeps, loses or brings in, what they are, and which heads write them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dash import Dash, Input, Output, dcc, html

from sparselens.dashboards.features.feature import CHANGES, OVER, PAIRS
from sparselens.dashboards.features.panel import (
    CARD_FIELDS,
    CHANGE_FIELDS,
    SOURCE_FIELDS,
    TEXT_FIELDS,
    card_panel,
    change_panel,
    example_panel,
    nothing,
    register_card,
    register_changes,
    register_sources,
    register_text,
    text_panel,
)
from sparselens.dashboards.page import Page, chosen, parts, problem
from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.selection import Selection


def settle(source: Source, selection: Selection, notices: list[str]) -> Selection:
    """The selection with an SAE, rows and a feature that the trace has for the pair."""
    pair: dict[str, Any] = {"a": selection.a, "b": selection.b or None}
    there = {row["sae"]: row for row in source.records(PAIRS, **pair)} if selection.b else {}
    if not there:
        return replace(selection, sae="", feature=None)
    sae = selection.sae if selection.sae in there else next(iter(there))
    if selection.sae and selection.sae != sae:
        notices.append(f"No SAE {selection.sae[:40]!r} for this pair; {there[sae]['name']} was chosen.")
    known = [row["rows"] for row in source.records(OVER, sae=sae, **pair)]
    rows = next(name for name in (selection.rows, "span:answer", "affected", *known) if name in known)
    feature = selection.feature
    if feature is not None and feature >= there[sae]["features"]:
        notices.append(f"The SAE has features 0 to {there[sae]['features'] - 1}, not {feature}.")
        feature = None
    if feature is None:
        first = source.first(CHANGES, rows=rows, sae=sae, most=1, **pair)
        feature = int(first["feature"]) if first else None
    return replace(selection, sae=sae, rows=rows, feature=feature)


def layout() -> Any:
    """The page before anything is drawn in it."""
    return html.Div(
        [
            *parts(CHANGE_FIELDS, CARD_FIELDS, TEXT_FIELDS, SOURCE_FIELDS),
            dcc.Store(id="feature-text-data"),
            html.Header(
                [html.H1("Features"), html.Div(id="feature-head", className="chosen-head")],
                className="page-head",
            ),
            html.Div(id="feature-missing"),
            html.Div(
                [
                    html.Div(
                        [html.Div([change_panel(), text_panel()], className="column"), card_panel()],
                        className="columns",
                    ),
                    example_panel(),
                ],
                id="feature-body",
                className="column",
            ),
        ],
        className="features-page",
    )


def _register_head(app: Dash, source: Source) -> None:
    def draw(data: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or not selection.a:
            return None, None, {}
        if not selection.sae:
            return None, nothing(source, selection), {"display": "none"}
        try:
            pairs = source.records(PAIRS, a=selection.a, b=selection.b)
        except SourceError as trouble:
            return None, problem(trouble), {}
        about = next((row for row in pairs if row["sae"] == selection.sae), {})
        said = f"{about.get('name')} on {about.get('hook')}, {about.get('features', 0):,} features"
        return html.Span(said, className="note"), None, {}

    app.callback(
        Output("feature-head", "children"),
        Output("feature-missing", "children"),
        Output("feature-body", "style"),
        Input(CHANGE_FIELDS, "data"),
    )(draw)


def register(app: Dash, source: Source) -> None:
    """Wire the panels to the selection."""
    _register_head(app, source)
    register_changes(app, source)
    register_card(app, source)
    register_text(app, source)
    register_sources(app, source)


PAGE = Page("Features", "/features", 5, layout, register, settle)
