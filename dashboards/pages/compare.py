"""Compare, the home page: what a run lost against its base, in the text, in the heads, in one head's keys."""

from __future__ import annotations

from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html

from sparselens.dashboards.choice import over
from sparselens.dashboards.finder import roles
from sparselens.dashboards.floor import FLOOR, floor_lines
from sparselens.dashboards.grid import HEADS, grid_figure, legend
from sparselens.dashboards.key import KEY_ROWS, KEYS, MOST_KEYS, MOST_ROWS, QUERIES, keys_figure
from sparselens.dashboards.loss import HEADLINE, RUN, TEXT, TEXT_RANGE, headline, text_figure
from sparselens.dashboards.metric import DIFF_METRICS, meaning
from sparselens.dashboards.page import (
    HIDDEN,
    Page,
    chosen,
    message,
    panel,
    part,
    parts,
    problem,
    switch,
    table,
)
from sparselens.dashboards.query import Source, SourceError, records
from sparselens.dashboards.score import scores
from sparselens.dashboards.score_value import values
from sparselens.dashboards.selection import Selection
from sparselens.dashboards.shell import picker
from sparselens.dashboards.span import SPANS, span_links

LIST_FIELDS = part("a", "b", "scope")
ALL_FIELDS = part("a", "b", "prompt", "over", "scope", "rows", "metric")
TEXT_FIELDS = part("a", "b", "prompt")
KEY_FIELDS = part("a", "b", "prompt", "rows", "layer", "head", "q")
HEADLINE_FIELDS = part("a", "b", "prompt", "over", "scope", "rows")


def columns(chosen_metric: str) -> list[dict[str, Any]]:
    """Columns of the ranked table: the chosen metric first and sorted by, the others after it."""
    names = [chosen_metric, *[name for name in DIFF_METRICS if name != chosen_metric]]
    return [
        {
            "field": "head_name",
            "headerName": "Head",
            "cellRenderer": "HeadLink",
            "width": 74,
            "pinned": "left",
        },
        *[
            {
                "field": name,
                "headerName": name.replace("_", " "),
                "headerTooltip": meaning("diffs", name),
                "type": "rightAligned",
                "width": 112,
                "cellRenderer": "Number",
                "sort": "desc" if name == chosen_metric else None,
            }
            for name in names
        ],
        {
            "field": "n_rows",
            "headerName": "rows",
            "headerTooltip": "query rows the numbers are over",
            "type": "rightAligned",
            "width": 70,
        },
    ]


def layout() -> Any:
    """The page before anything is drawn in it."""
    return html.Div(
        [
            *parts(LIST_FIELDS, ALL_FIELDS, TEXT_FIELDS, KEY_FIELDS, HEADLINE_FIELDS),
            dcc.Store(id="loss-data"),
            dcc.Store(id="grid-data"),
            html.Section(html.Div(id="headline"), className="headline", **{"aria-label": "In one sentence"}),
            html.Div(
                [html.Div([_text_panel(), _keys_panel()], className="column"), _heads_panel()],
                className="columns",
            ),
        ],
        className="compare",
    )


def _text_panel() -> Any:
    return panel(
        "Text",
        html.Div(id="loss-spans", className="spans"),
        html.Div(
            id="text", className="text", tabIndex="0", **{"aria-label": "The prompt's tokens, shaded by loss"}
        ),
        html.P(id="text-legend", className="note legend diverging"),
        tools=[switch("Shade by", "shade", [("diff", "RUN − BASE"), ("a", "BASE"), ("b", "RUN")])],
        note="loss of each token",
    )


def _heads_panel() -> Any:
    return panel(
        "Heads",
        html.Div(
            [
                picker("metric", "Metric", "What the grid shows"),
                picker("rows", "Rows", "Over which query rows"),
                picker("scope", "Scope", "What is compared with what"),
                switch("Over", "over", [("prompt", "This prompt"), ("all", "All prompts")]),
            ],
            className="controls",
        ),
        html.Div(
            [
                html.Div(
                    [html.Div(id="grid", className="grid"), html.Div(id="grid-legend")], className="grid-side"
                ),
                table("ranked", columns(DIFF_METRICS[0]), "table ranked"),
            ],
            className="heads",
        ),
        note="layers down, heads across; the same numbers ranked",
    )


def _keys_panel() -> Any:
    return panel(
        "Keys",
        html.P(
            "Stored keys of this head, strongest in BASE first: BASE → RUN probability. Struck through: "
            "dropped by the policy. Click a token above to choose the row that predicts it.",
            className="note",
        ),
        html.Div(id="keys"),
        tools=[
            html.Span(id="keys-head", className="head-name"),
            html.A("Open head", href="/head", **{"data-page": "/head"}),
        ],
        note="what the head reads",
    )


def _register_text(app: Dash, source: Source) -> None:
    def draw_headline(data: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None:
            return None
        if not selection.b:
            return message(
                "There is one run in this trace; comparing needs a second one.", _second_run(source)
            )
        asked = {"a": selection.a, "b": selection.b, "prompt": selection.prompt, "over": selection.over}
        try:
            loss = source.first(HEADLINE, **asked)
            run = source.first(RUN, b=selection.b, prompt=selection.prompt, over=selection.over)
            heads = source.frame(HEADS, scope=selection.scope, rows=selection.rows, **asked)
        except SourceError as found:
            return problem(found)
        worst = records(heads.nlargest(1, "write_error"))
        return headline(loss, run, worst[0] if worst else {}, selection)

    app.callback(Output("headline", "children"), Input(HEADLINE_FIELDS, "data"))(draw_headline)

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


def _register_heads(app: Dash, source: Source) -> None:
    def fill_lists(data: dict[str, Any] | None) -> tuple[Any, ...]:
        selection = chosen(data)
        try:
            kinds = over(source, selection.a, selection.b) if selection else {}
        except SourceError:
            kinds = {}
        return list(DIFF_METRICS), kinds.get(selection.scope, []) if selection else [], list(kinds)

    app.callback(
        *[Output({"choose": field}, "data") for field in ("metric", "rows", "scope")],
        Input(LIST_FIELDS, "data"),
    )(fill_lists)

    def draw_heads(data: dict[str, Any] | None, settled: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or settled is None or not selection.b:
            return None, None, [], [], HIDDEN
        try:
            asked = {
                field: getattr(selection, field) for field in ("a", "b", "prompt", "over", "scope", "rows")
            }
            frame = source.frame(HEADS, **asked)
            floor = source.records(FLOOR, **asked) if selection.metric == "write_error" else []
            if frame.empty:
                raise SourceError(
                    "No differences of B against A are stored for this pair and prompt. If they are stored "
                    "the other way round, swap (s); else this command fills what the tables allow:",
                    f"sparselens diff {selection.a} {selection.b} --trace {source.path}",
                )
            shape, group = tuple(settled["shape"]), settled["group"]
            named, unsure = roles(source, selection.a), holding_zero(source, selection)
            figure = grid_figure(frame, selection.metric, shape, group, named, unsure)
        except SourceError as found:
            return {}, problem(found), [], [], HIDDEN
        key = legend(figure, selection.scope, floor_lines(floor))
        return figure, key, records(frame), columns(selection.metric), {}

    app.callback(
        Output("grid-data", "data"),
        Output("grid-legend", "children"),
        Output("ranked", "rowData"),
        Output("ranked", "columnDefs"),
        Output("ranked", "style"),
        Input(ALL_FIELDS, "data"),
        State("selection", "data"),
    )(draw_heads)


def holding_zero(source: Source, selection: Selection) -> set[tuple[int, int]]:
    """The heads, by layer and number, whose interval over groups of prompts holds 0; of one prompt there is none."""
    if selection.over != "all":
        return set()
    score = scores(source, selection.a, selection.b).get(f"diffs.{selection.metric}")
    found = values(source, score, selection).rows if score is not None else []
    return {
        (row["layer"], row["head"])
        for row in found
        if row.get("diff_low") is not None and row["diff_low"] <= 0 <= row["diff_high"]
    }


def _register_keys(app: Dash, source: Source) -> None:
    def draw_keys(data: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or selection.layer is None or not selection.prompt:
            return None, None
        asked: dict[str, Any] = {name: getattr(selection, name) for name in ("prompt", "layer", "head")}
        asked["b"] = selection.b or selection.a
        try:
            rows = source.records(KEY_ROWS, rows=selection.rows, q=selection.q, most=MOST_ROWS, **asked)
            found = [row["q_pos"] for row in rows]
            keys = source.records(KEYS, queries=found, most=MOST_KEYS, **asked)
            queries = source.records(QUERIES, prompt=selection.prompt, queries=found)
        except SourceError as trouble:
            return problem(trouble), selection.head_name
        if not rows:
            which = f"query {selection.q}" if selection.q is not None else selection.rows
            return message(f"No edges of {selection.head_name} are stored for {which}."), selection.head_name
        return keys_figure(rows, keys, {row["pos"]: row for row in queries}), selection.head_name

    app.callback(Output("keys", "children"), Output("keys-head", "children"), Input(KEY_FIELDS, "data"))(
        draw_keys
    )


def register(app: Dash, source: Source) -> None:
    """Wire the panels to the selection."""
    _register_text(app, source)
    _register_heads(app, source)
    _register_keys(app, source)
    for function, store in (("text", "loss-data"), ("grid", "grid-data")):
        app.clientside_callback(ClientsideFunction("sparselens", function), Input(store, "data"))


def _second_run(source: Source) -> str:
    return (
        'sparselens capture MODEL --prompts "needles(length=512)" '
        f'--policy "a_shape(sink=4,window=64)" --trace {source.path}'
    )


PAGE = Page("Compare", "/", 0, layout, register)
