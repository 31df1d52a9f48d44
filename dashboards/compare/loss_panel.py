"""The sentence over Compare, and the panel of the prompt's text, whose tokens can be brushed."""

from __future__ import annotations

from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, dcc, html

from sparselens.dashboards.compare.brush import active, brushed_loss, words
from sparselens.dashboards.compare.change import change
from sparselens.dashboards.compare.loss import (
    HEADLINE,
    RUN,
    TEXT,
    TEXT_RANGE,
    brushed_words,
    headline,
    text_figure,
)
from sparselens.dashboards.compare.repair import repair_words
from sparselens.dashboards.export.link import save_buttons
from sparselens.dashboards.page import chosen, message, panel, part, parts, problem, switch, text_place
from sparselens.dashboards.query import Source, SourceError, records
from sparselens.dashboards.selection import Selection
from sparselens.dashboards.span import SPANS, span_links

TEXT_FIELDS = part("a", "b", "prompt")
HEADLINE_FIELDS = part("a", "b", "prompt", "over", "scope", "rows", "brush")
BRUSH_FIELDS = part("a", "b", "prompt", "over", "brush")


def text_panel() -> Any:
    """The panel before anything is drawn in it."""
    return panel(
        "Text",
        *parts(TEXT_FIELDS, BRUSH_FIELDS),
        dcc.Store(id="loss-data"),
        html.Div(id="loss-spans", className="spans"),
        text_place("The prompt's tokens, shaded by loss", tall=False),
        html.Div(id="brush-line", className="brush-line", **{"aria-live": "polite"}),
        html.P(id="text-legend", className="note legend diverging"),
        tools=[
            switch("Shade by", "shade", [("diff", "RUN − BASE"), ("a", "BASE"), ("b", "RUN")]),
            save_buttons("text"),
        ],
        note="loss of each token; drag over some",
    )


def headline_place() -> Any:
    """Where the sentence goes."""
    return html.Section(
        [*parts(HEADLINE_FIELDS), html.Div(id="headline")],
        className="headline",
        **{"aria-label": "In one sentence"},
    )


def _headline(source: Source, selection: Selection) -> Any:
    asked = {"a": selection.a, "b": selection.b, "prompt": selection.prompt, "over": selection.over}
    loss = source.first(HEADLINE, **asked)
    run = source.first(RUN, b=selection.b, prompt=selection.prompt, over=selection.over)
    try:
        heads = change(source, selection)
    except SourceError:
        return headline(loss, run, {}, selection, repaired=repair_words(source, selection))
    there = "write_error" in heads.metrics and heads.frame["write_error"].notna().any()
    worst = records(heads.frame.nlargest(1, "write_error")) if there else []
    over = f"{heads.rows}, {heads.scope}"
    return headline(
        loss, run, worst[0] if worst else {}, selection, over, repaired=repair_words(source, selection)
    )


def register_text(app: Dash, source: Source) -> None:
    """Wire the sentence and the text to the selection."""

    def draw_headline(data: dict[str, Any] | None, done: int | None) -> Any:
        del done  # a restore that ended
        selection = chosen(data)
        if selection is None:
            return None
        if not selection.b:
            return message(
                "There is one run in this trace; comparing needs a second one.", _second_run(source)
            )
        try:
            return _headline(source, selection)
        except SourceError as found:
            return problem(found)

    app.callback(Output("headline", "children"), Input(HEADLINE_FIELDS, "data"), Input("job-done", "data"))(
        draw_headline
    )

    def draw_text(data: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or not selection.prompt:
            return None, None
        asked = {"a": selection.a, "b": selection.b, "prompt": selection.prompt}
        try:
            frame = source.frame(TEXT, **asked)
            limits = source.first(TEXT_RANGE, **asked)
            spans = source.records(SPANS, prompt=selection.prompt)
        except SourceError as found:
            return None, problem(found)
        return text_figure(frame, limits.get("loss") or 1.0, limits.get("diff") or 1.0, spans), span_links(
            spans
        )

    app.callback(Output("loss-data", "data"), Output("loss-spans", "children"), Input(TEXT_FIELDS, "data"))(
        draw_text
    )
    app.clientside_callback(ClientsideFunction("sparselens", "text"), Input("loss-data", "data"))

    _register_brush(app, source)


def _register_brush(app: Dash, source: Source) -> None:
    def draw_brush(data: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or selection.brush is None:
            return None
        if active(selection) is None:
            line = f"The brush ({words(selection.brush)}) is not used over all prompts: its tokens are this prompt's."
            return [html.Span(line), _clear()]
        try:
            found = brushed_words(brushed_loss(source, selection), words(selection.brush))
        except SourceError as trouble:
            return problem(trouble)
        return [html.Span(found), _clear()]

    app.callback(Output("brush-line", "children"), Input(BRUSH_FIELDS, "data"))(draw_brush)


def _clear() -> Any:
    return html.Button(
        "Clear the brush (Esc)", type="button", className="action", **{"data-go": '{"brush":null}'}
    )


def _second_run(source: Source) -> str:
    return (
        'sparselens capture MODEL --prompts "needles(length=512)" '
        f'--policy "a_shape(sink=4,window=64)" --trace {source.path}'
    )
