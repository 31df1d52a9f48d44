"""Sinks: where attention is parked, by layer and token, and what policies do to that."""

from __future__ import annotations

from typing import Any

from dash import ALL, ClientsideFunction, Dash, Input, Output, dcc, html

from sparselens.analyses.sinks.measure import DEFINITIONS
from sparselens.dashboards.export.link import save_buttons
from sparselens.dashboards.page import Page, chosen, message, panel, part, parts, problem
from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.sinks.panel import (
    STRIP_FIELDS,
    TEXT_FIELDS,
    TOKEN_FIELDS,
    register_strips,
    register_tokens,
    strip_panel,
    text_panel,
    token_panel,
)
from sparselens.dashboards.sinks.profile import (
    FIGURES,
    LAYERS,
    NUMBERS,
    RUNS,
    by_run,
    command,
    headline,
    layer_figures,
    policy_table,
)

PAIR_FIELDS = part("b", "a")


def layout() -> Any:
    """The page before anything is drawn in it."""
    return html.Div(
        [
            *parts(PAIR_FIELDS, TOKEN_FIELDS, STRIP_FIELDS, TEXT_FIELDS),
            dcc.Store(id="sink-text-data"),
            html.Header(
                [html.H1("Sinks"), html.Div(id="sink-head", className="chosen-head")], className="page-head"
            ),
            panel(
                "What policies do to sinks",
                html.Div(id="sink-policies", className="scroll"),
                html.Div(id="sink-missing"),
                note="the first token, and later tokens that act like it",
                name="panel-policies",
            ),
            panel("By layer", html.Div(id="sink-layers", className="small-figures"), note="A blue, B orange"),
            strip_panel(),
            html.Div([text_panel(), token_panel()], className="columns"),
        ],
        className="sinks-page",
    )


def _register_analysis(app: Dash, source: Source) -> None:
    def draw(data: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or not selection.a:
            return None, None, None, None
        asked: dict[str, Any] = {"a": selection.a, "b": selection.b or None}
        try:
            runs = source.records(RUNS, **asked)
            numbers = by_run(source.records(NUMBERS, runs=[run["run_id"] for run in runs]))
            rows = source.records(LAYERS, metrics=[metric for metric, _ in FIGURES], **asked)
        except SourceError as found:
            return None, problem(found), None, None
        missing = [run["name"] for run in runs if run["run_id"] not in numbers]
        advice = message(
            f"Not analysed for sinks: {', '.join(missing)}. The strips and the text below need no analysis.",
            "\n".join(command(source, name) for name in missing),
        )
        said = headline(rows, selection.a, numbers.get(selection.a, {}))
        head = [
            html.Span(f"A: {said}" if said else "", className="note"),
            *_head_links({row["metric"] for row in rows}),
        ]
        return (
            head,
            [policy_table(runs, numbers, selection), html.P(_caption(numbers), className="note")]
            if numbers
            else None,
            advice if missing else None,
            [_layer_figure(*each) for each in layer_figures(rows, selection)]
            or html.P("By layer: nothing is stored for these runs.", className="note"),
        )

    app.callback(
        Output("sink-head", "children"),
        Output("sink-policies", "children"),
        Output("sink-missing", "children"),
        Output("sink-layers", "children"),
        Input(PAIR_FIELDS, "data"),
    )(draw)
    app.clientside_callback(
        ClientsideFunction("sparselens", "layer"),
        Input({"type": "layer-figure", "metric": ALL}, "clickData"),
        prevent_initial_call=True,
    )


def _head_links(there: set[str]) -> list[Any]:
    """Links to the same numbers head by head, of those metrics that heads have too."""
    return [
        html.A(
            f"{metric} by head",
            href="/heads",
            **{"data-page": "/heads", "data-go": f'{{"score":"head_scores.{metric}","whose":null}}'},
        )
        for metric in ("sink_change", "sink_kept")
        if metric in there
    ]


def _caption(numbers: dict[str, dict[str, dict[str, Any]]]) -> str:
    prompts = max((row["n_clusters"] or 0 for found in numbers.values() for row in found.values()), default=0)
    return (
        "Changes are over the rows in which the policy drops a key, from position 8 on, run − its base; brackets are "
        f"95 % bootstraps over up to {prompts} groups, paired by prompt. Hover a column for its definition."
    )


def _layer_figure(metric: str, title: str, drawn: Any) -> Any:
    return html.Figure(
        [
            html.Figcaption(
                [
                    html.Abbr(metric, title=DEFINITIONS[metric], className="mono"),
                    html.Span(f" {title}", className="note"),
                    save_buttons(),
                ]
            ),
            dcc.Graph(
                id={"type": "layer-figure", "metric": metric},
                figure=drawn,
                config={"displayModeBar": False},
                className="small-graph",
            ),
        ]
    )


def register(app: Dash, source: Source) -> None:
    """Wire the panels to the selection."""
    _register_analysis(app, source)
    register_strips(app, source)
    register_tokens(app, source)


PAGE = Page("Sinks", "/sinks", 4, layout, register)
