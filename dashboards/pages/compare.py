"""Compare, the home page: what runs lost against their base, in the text, in the heads, in one head's keys."""

from __future__ import annotations

from typing import Any

from dash import Dash, html

from sparselens.dashboards.compare.grid_panel import heads_panel, register_heads
from sparselens.dashboards.compare.key_panel import keys_panel, register_keys
from sparselens.dashboards.compare.loss_panel import headline_place, register_text, text_panel
from sparselens.dashboards.compare.matrix_panel import matrix_panel, register_matrix
from sparselens.dashboards.compare.repair_panel import register_repair, repair_panel
from sparselens.dashboards.page import Page
from sparselens.dashboards.query import Source


def layout() -> Any:
    """The page before anything is drawn in it."""
    return html.Div(
        [
            headline_place(),
            html.Div(
                [html.Div([text_panel(), keys_panel()], className="column"), heads_panel()],
                className="columns",
            ),
            repair_panel(),
            matrix_panel(),
        ],
        className="compare",
    )


def register(app: Dash, source: Source) -> None:
    """Wire the panels to the selection."""
    register_text(app, source)
    register_heads(app, source)
    register_keys(app, source)
    register_repair(app, source)
    register_matrix(app, source)


PAGE = Page("Compare", "/", 0, layout, register)
