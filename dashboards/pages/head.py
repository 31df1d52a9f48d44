"""Head: one head in A and B. Its statistics, what each token reads or is read by, and its maps."""

from __future__ import annotations

from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html

from sparselens.dashboards.heatmap import how, map_figures, maps
from sparselens.dashboards.metric import STATS, meaning
from sparselens.dashboards.page import Page, chosen, message, panel, part, parts, problem, switch
from sparselens.dashboards.query import Source, SourceError, records
from sparselens.dashboards.span import SPANS, span_links
from sparselens.dashboards.verdict import number

STATISTICS = """
SELECT run_id, rows, n_rows, {columns} FROM head_stats
WHERE run_id IN ($a, $b) AND prompt_id = $prompt AND pattern = 'executed' AND layer = $layer AND head = $head
""".replace("{columns}", ", ".join(STATS))
SIDES = """
SELECT {place} AS place, '{name}' AS statistic, max({name}) FILTER (run_id = $a) AS a,
       max({name}) FILTER (run_id = $b) AS b, b - a AS change
FROM s WHERE rows = $over_rows
"""
TABLE = f"WITH s AS ({STATISTICS}) {{}} ORDER BY place".format(
    " UNION ALL ".join(SIDES.format(place=place, name=name) for place, name in enumerate(STATS))
)
ROWS_KEPT = """
SELECT DISTINCT rows FROM head_stats
WHERE run_id IN ($a, $b) AND prompt_id = $prompt AND layer = $layer AND head = $head
"""
TOKENS = "SELECT pos, text, is_special FROM tokens WHERE prompt_id = $prompt ORDER BY pos"
FIRST_QUERY = """
SELECT coalesce((SELECT start - 1 FROM spans WHERE prompt_id = $prompt AND name = 'answer' AND start > 0),
                (SELECT n_tokens - 1 FROM prompts WHERE prompt_id = $prompt)) AS q
"""
SINKS = """
SELECT run_id, sink_mass FROM head_stats
WHERE run_id IN ($a, $b) AND prompt_id = $prompt AND pattern = 'executed' AND rows = 'all'
  AND layer = $layer AND head = $head
"""
SCORES = """
SELECT metric, any_value(definition) AS definition,
       max(value) FILTER (run_id = $a) AS a, max(value) FILTER (run_id = $b) AS b
FROM head_scores WHERE run_id IN ($a, $b) AND layer = $layer AND head = $head GROUP BY metric ORDER BY metric
"""
DAMAGE = """
SELECT scope, rows, n_rows, write_error, kept_mass, js FROM diffs
WHERE run_a = $a AND run_b = $b AND prompt_id = $prompt AND layer = $layer AND head = $head
ORDER BY scope, rows
"""

HEAD_FIELDS = part("a", "b", "prompt", "layer", "head", "rows")
READ_FIELDS = part("a", "b", "prompt", "layer", "head")
MAP_FIELDS = part("a", "b", "prompt", "layer", "head", "qs", "ks", "hide", "scale")


def statistics_figure(rows: list[dict[str, Any]], scores: list[dict[str, Any]]) -> Any:
    """The table of statistics of A and B; definitions are in the tooltips of the names."""
    lines = [
        (row["statistic"], meaning("head_stats", row["statistic"]), row["a"], row["b"], row["change"])
        for row in rows
    ]
    lines += [(row["metric"], row["definition"] or "", row["a"], row["b"], None) for row in scores]
    body = [
        html.Tr(
            [
                html.Th(html.Abbr(name.replace("_", " "), title=what), scope="row"),
                html.Td(number(a)),
                html.Td(number(b)),
                html.Td(number(change), className="rising" if (change or 0) > 0 else "falling"),
            ]
        )
        for name, what, a, b, change in lines
        if a is not None or b is not None
    ]
    top = html.Tr([html.Th(word, scope="col") for word in ("statistic", "A", "B", "B − A")])
    return html.Table([html.Thead(top), html.Tbody(body)], className="numbers")


def damage_figure(rows: list[dict[str, Any]]) -> Any:
    """What this head changed between A and B, by scope and rows."""
    names = ("write_error", "kept_mass", "js")
    top = [html.Th("scope · rows", scope="col")]
    top += [
        html.Th(html.Abbr(name.replace("_", " "), title=meaning("diffs", name)), scope="col")
        for name in names
    ]
    body = [
        html.Tr(
            [
                html.Th(
                    f"{row['scope']} · {row['rows']}", scope="row", title=f"over {row['n_rows']} query rows"
                ),
                *[html.Td(number(row[name])) for name in names],
            ]
        )
        for row in rows
    ]
    return html.Table([html.Thead(html.Tr(top)), html.Tbody(body)], className="numbers")


def reading_figure(frame: Any, spans: list[dict[str, Any]], start: int) -> dict[str, Any]:
    """The prompt's tokens as plain data; the browser asks for the reads of a token when it is hovered."""
    rows = records(frame)
    return {
        "kind": "attention",
        "texts": [row["text"] if row["text"] is not None else "▯" for row in rows],
        "special": [bool(row["is_special"]) for row in rows],
        "spans": spans,
        "start": start,
    }


def layout() -> Any:
    """The page before anything is drawn in it."""
    return html.Div(
        [
            *parts(HEAD_FIELDS, READ_FIELDS, MAP_FIELDS),
            dcc.Store(id="reading-data"),
            html.Header(
                [
                    html.H1(id="head-title"),
                    html.Span("arrow keys move to the neighbouring head", className="note"),
                    html.Div(
                        [
                            switch("Scale", "scale", [("sqrt", "√"), ("linear", "linear"), ("log", "log")]),
                            switch("Sinks", "hide", [("0", "Show sinks"), ("1", "Hide sinks")]),
                        ],
                        className="tools",
                    ),
                ],
                className="page-head",
            ),
            html.Div(
                [_map_panel(), html.Div([_text_panel(), _numbers_panel()], className="columns head-columns")]
            ),
        ],
        className="head-page",
    )


def _map_panel() -> Any:
    return panel(
        "Map",
        html.Div(id="maps", className="maps"),
        html.P(id="map-readout", className="readout", **{"aria-live": "polite"}),
        html.P(id="map-how", className="note"),
        tools=[
            html.Button("Around the query", type="button", className="action", **{"data-action": "around"}),
            html.Button(
                "Whole map", type="button", className="action", **{"data-go": '{"qs":null,"ks":null}'}
            ),
        ],
        note="queries (destination) down, keys (source) across; drag to zoom",
    )


def _text_panel() -> Any:
    return panel(
        "Text",
        html.Div(id="reading-spans", className="spans"),
        html.P(id="reads", className="readout", **{"aria-live": "polite"}),
        html.Ul(id="top-keys", className="chips", **{"aria-label": "The strongest of them, A → B"}),
        html.Div(
            id="text",
            className="text tall",
            tabIndex="0",
            **{"aria-label": "The prompt's tokens, shaded by attention"},
        ),
        tools=[
            switch("Direction", "way", [("reads", "What it reads"), ("readers", "Who reads it")]),
            switch("Run", "side", [("b", "B"), ("a", "A"), ("diff", "B − A")]),
        ],
        note="hover a token; click locks it",
    )


def _numbers_panel() -> Any:
    return panel(
        "Numbers",
        html.Div(id="statistics"),
        html.Div(id="damage"),
        note="executed pattern; hover a name for its definition",
    )


def register(app: Dash, source: Source) -> None:
    """Wire the panels to the selection."""
    _register_numbers(app, source)
    _register_pictures(app, source)
    app.clientside_callback(ClientsideFunction("sparselens", "text"), Input("reading-data", "data"))


def _register_numbers(app: Dash, source: Source) -> None:
    def draw_numbers(data: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or selection.layer is None or not selection.prompt:
            return "Head", message("No head is chosen: this trace has no captured run."), None
        at = {name: getattr(selection, name) for name in ("a", "b", "prompt", "layer", "head")}
        try:
            kept = [row["rows"] for row in source.records(ROWS_KEPT, **at)]
            over = selection.rows if selection.rows in kept else "all"
            table = statistics_figure(
                source.records(TABLE, over_rows=over, **at),
                source.records(SCORES, **{name: at[name] for name in ("a", "b", "layer", "head")}),
            )
            damage = source.records(DAMAGE, **at)
        except SourceError as found:
            return selection.head_name, problem(found), None
        caption = html.P(f"Means over the rows {over} of this prompt.", className="note")
        below = [html.H3("Difference B against A"), damage_figure(damage)] if damage else None
        return selection.head_name, [caption, table], below

    app.callback(
        Output("head-title", "children"),
        Output("statistics", "children"),
        Output("damage", "children"),
        Input(HEAD_FIELDS, "data"),
    )(draw_numbers)


def _register_pictures(app: Dash, source: Source) -> None:
    def draw_text(data: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or not selection.prompt:
            return None, None
        try:
            spans = source.records(SPANS, prompt=selection.prompt)
            start = source.first(FIRST_QUERY, prompt=selection.prompt).get("q") or 0
            return reading_figure(source.frame(TOKENS, prompt=selection.prompt), spans, start), span_links(
                spans
            )
        except SourceError as found:
            return None, problem(found)

    app.callback(
        Output("reading-data", "data"), Output("reading-spans", "children"), Input(READ_FIELDS, "data")
    )(draw_text)

    def draw_maps(data: dict[str, Any] | None, settled: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or settled is None or selection.layer is None or not selection.prompt:
            return None, None
        at = {name: getattr(selection, name) for name in ("a", "b", "prompt", "layer", "head")}
        try:
            drawn = maps(source, selection)
            masses = {row["run_id"]: row["sink_mass"] for row in source.records(SINKS, **at)}
        except SourceError as found:
            return problem(found), None
        sinks = {"a": masses.get(selection.a), "b": masses.get(selection.b)}
        hidden = " Key 0's column is hidden, its mass is printed." if selection.hide == "1" else ""
        return map_figures(drawn, selection, sinks, settled["seen"]), how(
            next(iter(drawn.values())).cells
        ) + hidden

    app.callback(
        Output("maps", "children"),
        Output("map-how", "children"),
        Input(MAP_FIELDS, "data"),
        State("selection", "data"),
    )(draw_maps)


PAGE = Page("Head", "/head", 2, layout, register)
