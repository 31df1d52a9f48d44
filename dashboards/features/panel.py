"""The panels about SAE features: what changed, the card of one, where in the text it is active."""

from __future__ import annotations

from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, dcc, html

from sparselens.analyses.features.card import Card, card_of, encoded
from sparselens.dashboards.drawing import drawn, place, tree
from sparselens.dashboards.export.link import save_buttons
from sparselens.dashboards.features.feature import (
    CHANGES,
    COLUMNS,
    MOST,
    OVER,
    SOURCES,
    TEXT,
    examples,
    heads_figure,
    sentence,
    sources_figure,
    text_figure,
    tokens_table,
)
from sparselens.dashboards.page import (
    HIDDEN,
    chosen,
    message,
    panel,
    part,
    problem,
    switch,
    table,
    table_height,
    text_place,
)
from sparselens.dashboards.picker import filled
from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.selection import Selection
from sparselens.dashboards.span import SPANS
from sparselens.dashboards.verdict import number

WORD = "SELECT text FROM tokens WHERE prompt_id = $prompt AND pos = $q"
CHANGE_FIELDS = part("a", "b", "sae", "rows")
CARD_FIELDS = part("a", "b", "sae", "feature")
TEXT_FIELDS = part("a", "b", "prompt", "sae", "feature")
SOURCE_FIELDS = part("a", "b", "prompt", "sae", "feature", "q")


def change_panel() -> Any:
    """The table of features before anything is in it."""
    return panel(
        "What changed",
        html.Div(id="feature-rows", className="controls"),
        html.Div(id="feature-note"),
        table("feature-table", COLUMNS),
        note="features by the change of their summed activation; a click shows one",
    )


def card_panel() -> Any:
    """The card of a feature before it is there."""
    return panel("Feature", html.Div(id="feature-card"), note="where it is active and what writes it")


def example_panel() -> Any:
    """The strongest examples before they are there."""
    return panel(
        "Strongest tokens",
        place("feature-examples", className="columns"),
        note="with what wrote the feature there: head ← source token, its part; struck through where B drops the key",
    )


def text_panel() -> Any:
    """The text before it is there."""
    return panel(
        "Text",
        text_place("The prompt's tokens, shaded by the activation of the feature"),
        html.P(id="text-legend", className="note legend"),
        place("feature-sources"),
        tools=[switch("Shade by", "shade", [("diff", "B − A"), ("a", "A"), ("b", "B")])],
        note="where the feature is active; a click on a token shows what wrote it there",
    )


def register_changes(app: Dash, source: Source) -> None:
    """Wire the table to the selection."""

    def draw(data: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or not selection.sae or not selection.b:
            return None, None, [], HIDDEN
        asked = {"a": selection.a, "b": selection.b, "sae": selection.sae}
        try:
            over = {row["rows"]: row for row in source.records(OVER, **asked)}
            rows = source.records(CHANGES, rows=selection.rows, most=MOST, **asked)
        except SourceError as trouble:
            return None, problem(trouble), [], HIDDEN
        said = sentence(over[selection.rows]) if selection.rows in over else "No features over these rows."
        lists = filled("rows", "Rows", "Over which tokens", list(over), selection.rows)
        more = f" The {MOST} features that changed most are listed." if len(rows) == MOST else ""
        return lists, html.P(said + more, className="note"), rows, table_height(min(len(rows), 14), 26)

    app.callback(
        Output("feature-rows", "children"),
        Output("feature-note", "children"),
        Output("feature-table", "rowData"),
        Output("feature-table", "style"),
        Input(CHANGE_FIELDS, "data"),
    )(draw)


def register_card(app: Dash, source: Source) -> None:
    """Wire the card to the selection."""

    def draw(data: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or not selection.sae or selection.feature is None:
            return None, None
        try:
            a, b = cards(source, selection)
        except SourceError as trouble:
            return problem(trouble), None
        return card_figure(a, b), tree(examples_figure(a, b))

    app.callback(Output("feature-card", "children"), drawn("feature-examples"), Input(CARD_FIELDS, "data"))(
        draw
    )


def cards(source: Source, selection: Selection) -> tuple[Card, Card | None]:
    """The cards of the chosen feature in A and, where there is one, in B."""
    sae, feature = selection.sae, selection.feature or 0

    def of(run: str) -> Card:
        name = f"{sae} {run} {selection.b}"
        there = source.kept(
            f"encoded {name}",
            lambda: source.through(lambda opened: encoded(opened, sae=sae, run=run, against=selection.b)),
        )
        return source.kept(
            f"card {feature} {name}",
            lambda: source.through(lambda opened: card_of(opened, there, feature, top=6, tokens=10)),
        )

    return of(selection.a), of(selection.b) if selection.b else None


def card_figure(a: Card, b: Card | None) -> Any:
    """A card as the page shows it: counts, heads, tokens."""
    sides = [("A", a), *([("B", b)] if b else [])]
    counts = "; ".join(
        f"{name}: active on {each.n_active:,} of {each.n_tokens:,} tokens, mean {number(each.mean)}, largest "
        f"{number(each.largest)}"
        for name, each in sides
    )
    partly = f" {a.unstored:.1%} of all activation is not stored." if a.unstored > 5e-4 else ""
    told = (
        f"Direct feature attribution, mean over the {a.n_told} tokens of A whose parts are stored; "
        f"{number(a.untold / a.n_told)} of a pre-activation of {number(a.pre / a.n_told)} is not."
        if a.n_told
        else "No parts by head are stored: the feature is never among a token's best, or the SAE is on the residual."
    )
    return [
        html.H3(f"Feature {a.feature} of {a.hook}"),
        html.P(f"{counts}.{partly}", className="note"),
        html.Figure(
            [
                html.Figcaption(["Heads that write it", save_buttons()]),
                dcc.Graph(figure=heads_figure(a, b), config={"displayModeBar": False}),
            ]
        )
        if a.n_told
        else html.H4("Heads that write it"),
        html.P(told, className="note"),
        html.H4("On tokens"),
        tokens_table(a, b),
    ]


def examples_figure(a: Card, b: Card | None) -> Any:
    """The strongest tokens of A beside those of B."""
    sides = [("A", a), *([("B", b)] if b else [])]
    return [html.Div([html.H3(f"{name}: {each.policy}"), examples(each)]) for name, each in sides]


def register_text(app: Dash, source: Source) -> None:
    """Wire the text and the sources of the chosen token to the selection."""

    def draw(data: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or not selection.prompt or selection.feature is None or not selection.sae:
            return None
        asked: dict[str, Any] = {name: getattr(selection, name) for name in ("a", "prompt", "sae", "feature")}
        try:
            rows = source.records(TEXT, b=selection.b or None, **asked)
            spans = source.records(SPANS, prompt=selection.prompt)
        except SourceError:
            return None
        return text_figure(rows, spans, selection.feature)

    app.callback(Output("feature-text-data", "data"), Input(TEXT_FIELDS, "data"))(draw)
    app.clientside_callback(ClientsideFunction("sparselens", "text"), Input("feature-text-data", "data"))


def register_sources(app: Dash, source: Source) -> None:
    """Wire the parts at the chosen token to the selection."""

    def draw(data: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or selection.q is None or selection.feature is None or not selection.sae:
            return None
        asked: dict[str, Any] = {
            name: getattr(selection, name) for name in ("a", "prompt", "sae", "feature", "q")
        }
        try:
            rows = source.records(SOURCES, b=selection.b or None, **asked)
            token = source.first(WORD, prompt=selection.prompt, q=selection.q)
        except SourceError as trouble:
            return tree(problem(trouble))
        return tree(sources_figure(rows, selection.q, token.get("text") or ""))

    app.callback(drawn("feature-sources"), Input(SOURCE_FIELDS, "data"))(draw)


def nothing(source: Source, selection: Selection) -> Any:
    """Why there are no features of a pair, and the command that stores them."""
    return message(
        "No SAE features are stored for this pair of runs.",
        f"sparselens analyse features --run {selection.b or 'RUN'} --trace {source.path}",
    )
