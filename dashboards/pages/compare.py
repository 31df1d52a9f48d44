"""Compare, the home page: what runs lost against their base, in the text, in the heads, in one head's keys."""

from __future__ import annotations

from typing import Any

from dash import Dash, html

from sparselens.dashboards.grid_panel import heads_panel, register_heads
from sparselens.dashboards.key_panel import keys_panel, register_keys
from sparselens.dashboards.loss_panel import headline_place, register_text, text_panel
from sparselens.dashboards.matrix_panel import matrix_panel, register_matrix
from sparselens.dashboards.page import Page
from sparselens.dashboards.query import Source
from sparselens.dashboards.repair_panel import register_repair, repair_panel


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
