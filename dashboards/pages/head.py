"""Head: one head in A and B. Its maps, what each token reads, where the mass went, numbers, prompts, what tests it."""

from __future__ import annotations

from typing import Any

from dash import ClientsideFunction, Dash, Input, dcc, html

from sparselens.dashboards.head.command import COMMAND_FIELDS, commands_panel, register_commands
from sparselens.dashboards.head.mass_panel import MASS_FIELDS, mass_panel, register_mass
from sparselens.dashboards.head.number_panel import (
    HEAD_FIELDS,
    ROW_FIELDS,
    SCORE_FIELDS,
    numbers_panel,
    register_numbers,
    register_scores,
    scores_panel,
)
from sparselens.dashboards.head.panel import (
    MAP_FIELDS,
    READ_FIELDS,
    map_panel,
    register_maps,
    register_text,
    text_panel,
)
from sparselens.dashboards.head.prompt import PROMPT_FIELDS, prompts_panel, register_prompts
from sparselens.dashboards.head.studied import STUDY_FIELDS, register_study, settle_study, study_panel
from sparselens.dashboards.page import Page, parts, switch
from sparselens.dashboards.query import Source

FIELDS = (
    HEAD_FIELDS, ROW_FIELDS, MAP_FIELDS, READ_FIELDS, MASS_FIELDS, SCORE_FIELDS, PROMPT_FIELDS, STUDY_FIELDS,
    COMMAND_FIELDS,
)  # fmt: skip
LAZY = ("seen-prompts", "seen-scores", "seen-study")
"""Panels further down: their stores become true when they come into view (`assets/head.js`)."""


def layout() -> Any:
    """The page before anything is drawn in it."""
    return html.Div(
        [
            *parts(*FIELDS),
            *[dcc.Store(id=name) for name in LAZY],
            dcc.Store(id="reading-data"),
            _top(),
            html.Div(
                [
                    map_panel(),
                    html.Div([text_panel(), mass_panel()], className="columns"),
                    html.Div(
                        [
                            html.Div([numbers_panel()], className="column"),
                            html.Div([prompts_panel(), commands_panel()], className="column"),
                        ],
                        className="columns",
                    ),
                    study_panel(),
                    scores_panel(),
                ]
            ),
        ],
        className="head-page",
    )


def _top() -> Any:
    return html.Header(
        [
            html.H1(id="head-title"),
            html.Div(id="head-roles", className="roles", role="group", **{"aria-label": "Roles"}),
            html.Span("arrow keys move to the neighbouring head", className="note"),
            html.Div(
                [
                    html.Div(id="head-rows"),
                    switch("Weigh keys by", "weigh", [("attention", "Attention"), ("value", "By value")]),
                    switch("Scale", "scale", [("sqrt", "√"), ("linear", "linear"), ("log", "log")]),
                    switch("Sinks", "hide", [("0", "Show sinks"), ("1", "Hide sinks")]),
                ],
                className="tools",
            ),
        ],
        className="page-head",
    )


def register(app: Dash, source: Source) -> None:
    """Wire the panels to the selection."""
    register_numbers(app, source)
    register_text(app, source)
    register_mass(app, source)
    register_maps(app, source)
    register_commands(app, source)
    register_prompts(app, source)
    register_study(app, source)
    register_scores(app, source)
    above = [Input({"tree": name}, "data") for name in ("maps", "mass", "statistics")]
    app.clientside_callback(ClientsideFunction("sparselens", "watch"), *above)


PAGE = Page("Head", "/head", 2, layout, register, settle_study)
