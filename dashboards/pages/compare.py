"""Compare, the home page: what a run lost against its base, in the text, in the heads, in one head's keys."""

from __future__ import annotations

from typing import Any

import dash_ag_grid as dag
from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html

from sparselens.dashboards.colour import LEVELS, level
from sparselens.dashboards.metric import DIFF_METRICS, meaning, metric
from sparselens.dashboards.page import Page, chosen, message, panel, part, parts, problem, switch
from sparselens.dashboards.query import Source, TraceProblem, records
from sparselens.dashboards.selection import Selection
from sparselens.dashboards.shell import picker
from sparselens.dashboards.span import SPANS, span_links
from sparselens.dashboards.verdict import number, verdict

HEADLINE = """
WITH picked AS (
  SELECT DISTINCT prompt_id FROM predictions WHERE run_id = $a AND ($over = 'all' OR prompt_id = $prompt)
  INTERSECT SELECT DISTINCT prompt_id FROM predictions WHERE run_id = $b
), loss AS (
  SELECT n.run_id, n.prompt_id, avg(n.nll) AS nll,
         avg(n.nll) FILTER (WHERE n.pos >= s.start AND n.pos < s.stop) AS answer_nll
  FROM predictions n JOIN picked USING (prompt_id)
  LEFT JOIN spans s ON s.prompt_id = n.prompt_id AND s.name = 'answer'
  WHERE n.run_id IN ($a, $b) GROUP BY ALL
)
SELECT count(DISTINCT prompt_id) AS n_prompts,
       avg(nll) FILTER (WHERE run_id = $a) AS nll_a, avg(nll) FILTER (WHERE run_id = $b) AS nll_b,
       avg(answer_nll) FILTER (WHERE run_id = $a) AS answer_a,
       avg(answer_nll) FILTER (WHERE run_id = $b) AS answer_b
FROM loss
"""
RUN = """
SELECT r.*, (SELECT avg(density) FROM head_stats h WHERE h.run_id = r.run_id AND h.pattern = 'executed'
             AND h.rows = 'all' AND ($over = 'all' OR h.prompt_id = $prompt)) AS density
FROM runs r WHERE r.run_id = $b
"""
TEXT = """
SELECT t.pos, t.text, t.is_special, a.nll AS a, b.nll AS b, b.nll - a.nll AS diff
FROM tokens t
LEFT JOIN predictions a ON a.run_id = $a AND a.prompt_id = t.prompt_id AND a.pos = t.pos
LEFT JOIN predictions b ON b.run_id = $b AND b.prompt_id = t.prompt_id AND b.pos = t.pos
WHERE t.prompt_id = $prompt ORDER BY t.pos
"""
TEXT_RANGE = """
SELECT greatest(quantile_cont(greatest(a.nll, b.nll), 0.98), 0.5) AS loss,
       greatest(quantile_cont(abs(b.nll - a.nll), 0.98), 0.5) AS diff
FROM predictions a LEFT JOIN predictions b ON b.run_id = $b AND b.prompt_id = a.prompt_id AND b.pos = a.pos
WHERE a.run_id = $a AND a.prompt_id = $prompt
"""
HEADS = """
SELECT layer, head, 'L' || layer || 'H' || head AS head_name, count(DISTINCT prompt_id) AS n_prompts,
       sum(n_rows) AS n_rows, {metrics}
FROM diffs
WHERE run_a = $a AND run_b = $b AND scope = $scope AND rows = $rows AND ($over = 'all' OR prompt_id = $prompt)
GROUP BY layer, head ORDER BY layer, head
""".replace("{metrics}", ", ".join(f"avg({name}) AS {name}" for name in DIFF_METRICS))
KEY_ROWS = """
WITH span AS (SELECT start, stop FROM spans WHERE prompt_id = $prompt AND name = replace($rows, 'span:', '')),
stored AS (
  SELECT DISTINCT q_pos FROM edges
  WHERE run_id = $b AND prompt_id = $prompt AND layer = $layer AND head = $head AND ($q IS NULL OR q_pos = $q)
)
SELECT q_pos, r.unstored_mass, r.write_error
FROM stored LEFT JOIN span ON true
LEFT JOIN (SELECT q_pos, unstored_mass, write_error FROM row_stats
           WHERE run_id = $b AND prompt_id = $prompt AND pattern = 'executed' AND layer = $layer AND head = $head) r
  USING (q_pos)
WHERE $q IS NOT NULL OR span.start IS NULL
   OR ($rows = 'span:answer' AND q_pos + 1 >= span.start AND q_pos + 1 < span.stop)
   OR ($rows <> 'span:answer' AND q_pos >= span.start AND q_pos < span.stop)
ORDER BY CASE WHEN span.start IS NULL THEN -coalesce(r.write_error, 0) ELSE q_pos END LIMIT $most
"""
KEYS = """
SELECT e.q_pos, e.k_pos, e.p, e.p_base, e.kept, t.text,
       row_number() OVER (PARTITION BY e.q_pos ORDER BY coalesce(e.p_base, e.p) DESC, e.k_pos) AS place
FROM edges e LEFT JOIN tokens t ON t.prompt_id = e.prompt_id AND t.pos = e.k_pos
WHERE e.run_id = $b AND e.prompt_id = $prompt AND e.layer = $layer AND e.head = $head AND e.q_pos IN (SELECT unnest($queries))
QUALIFY place <= $most ORDER BY e.q_pos, place
"""
QUERIES = """
SELECT t.pos, t.text, n.text AS next FROM tokens t
LEFT JOIN tokens n ON n.prompt_id = t.prompt_id AND n.pos = t.pos + 1
WHERE t.prompt_id = $prompt AND t.pos IN (SELECT unnest($queries))
"""
MOST_ROWS = 6
MOST_KEYS = 24


def headline(loss: dict[str, Any], run: dict[str, Any], worst: dict[str, Any], selection: Selection) -> Any:
    """The sentence, and under it what it is over and the head that changed most."""
    n = loss.get("n_prompts") or 0
    over = "this prompt" if selection.over == "prompt" else f"{n} prompts, weighted equally"
    below: list[Any] = [f"Nats a token, over {over}."]
    if worst:
        below += [
            f" Changed most in what it writes ({selection.rows}, {selection.scope}): ",
            html.A(
                worst["head_name"],
                href="/head" + selection.search(layer=worst["layer"], head=worst["head"]),
                **{"data-go": f'{{"layer":{worst["layer"]},"head":{worst["head"]}}}', "data-page": "/head"},
            ),
            f", write error {number(worst['write_error'])}.",
        ]
    return [html.P(verdict(loss, run), className="sentence"), html.P(below, className="note")]


def text_figure(frame: Any, loss: float, change: float, spans: list[dict[str, Any]]) -> dict[str, Any]:
    """Tokens and their losses as plain data for the browser: values in nats, colour steps 0…32.

    Loss runs from 0 to `loss` on the sequential scale, the difference from −`change` to `change`.
    """
    rows = records(frame)
    values = {name: [row[name] for row in rows] for name in ("a", "b", "diff")}
    return {
        "kind": "loss",
        "texts": [row["text"] if row["text"] is not None else "▯" for row in rows],
        "special": [bool(row["is_special"]) for row in rows],
        "spans": spans,
        "values": values,
        "levels": {
            "a": [level(value, 0, loss) for value in values["a"]],
            "b": [level(value, 0, loss) for value in values["b"]],
            "diff": [level(value, -change, change) for value in values["diff"]],
        },
        "legends": {
            "a": f"BASE: 0 to {loss:.2f} nats or more",
            "b": f"RUN: 0 to {loss:.2f} nats or more",
            "diff": f"RUN − BASE: −{change:.2f} (blue) to +{change:.2f} nats (orange) or more",
        },
    }


def grid_figure(frame: Any, name: str, shape: tuple[int, int], group: int = 0) -> dict[str, Any]:
    """A layer × head grid as plain data: `values` row by row, layer 0 first; None where there is no row.

    `shape` is (layers, heads); `group` is the number of query heads that share a key-value head.
    """
    drawn = metric(name)
    layers, heads = shape
    values: list[float | None] = [None] * (layers * heads)
    for row in records(frame[["layer", "head", name]]):
        values[row["layer"] * heads + row["head"]] = row[name]
    known = [value for value in values if value is not None]
    high = 1.0 if drawn.share else max((abs(value) for value in known), default=0.0)
    low = -high if drawn.signed else 0.0
    return {
        "label": f"{name} of every head, layers down, heads across",
        "metric": name,
        "meaning": drawn.meaning,
        "layers": layers,
        "heads": heads,
        "group": group,
        "scale": "div" if drawn.signed else "seq",
        "low": low,
        "high": high,
        "values": values,
        "texts": [number(value) for value in values],
        "levels": [level(value, low, high) for value in values],
    }


def keys_figure(
    rows: list[dict[str, Any]], keys: list[dict[str, Any]], queries: dict[int, dict[str, Any]]
) -> list[Any]:
    """For each query row its stored keys as chips, strongest in the base first, dropped ones struck through."""
    drawn = []
    for row in rows:
        at = row["q_pos"]
        query = queries.get(at, {})
        chips = [_chip(key) for key in keys if key["q_pos"] == at]
        follows = [" → predicts ", html.Code(shown(query["next"]))] if query.get("next") is not None else []
        left_out = number(row["unstored_mass"])
        drawn.append(
            html.Div(
                [
                    html.H3([f"Query {at} ", html.Code(shown(query.get("text"))), *follows]),
                    html.P(
                        f"Left out (executed mass on keys not stored): {left_out}. "
                        f"Write error of this row: {number(row['write_error'])}.",
                        className="note",
                    ),
                    html.Ul(chips, className="chips"),
                ],
                className="key-row",
            )
        )
    return drawn


def shown(text: str | None) -> str:
    """A token with its white space visible."""
    return "▯" if text is None else text.replace(" ", "·").replace("\n", "↵").replace("\t", "⇥") or "∅"


def _chip(key: dict[str, Any]) -> Any:
    dropped = key["kept"] is False
    base = key["p_base"]
    step = level((base if base is not None else key["p"]) ** 0.5, 0, 1) or 0
    said = f"key {key['k_pos']}: base {number(base)}, run {number(key['p'])}" + (", dropped" if dropped else "")
    text = shown(key["text"])
    return html.Li(
        [
            html.Span(str(key["k_pos"]), className="pos"),
            html.Del(text, className="word") if dropped else html.Span(text, className="word"),
            html.Span(f"{number(base)} → {number(key['p'])}", className="mass"),
        ],
        className="chip cut" if dropped else "chip",
        title=said,
        style={"--step": f"var(--seq-{step})"},
    )


ALL_FIELDS = part("a", "b", "prompt", "over", "scope", "rows", "metric")
TEXT_FIELDS = part("a", "b", "prompt")
KEY_FIELDS = part("a", "b", "prompt", "rows", "layer", "head", "q")
HEADLINE_FIELDS = part("a", "b", "prompt", "over", "scope", "rows")
COLUMNS = [
    {"field": "head_name", "headerName": "Head", "cellRenderer": "HeadLink", "width": 74, "pinned": "left"},
    *[
        {
            "field": name,
            "headerName": name.replace("_", " "),
            "headerTooltip": meaning("diffs", name),
            "type": "rightAligned",
            "width": 104,
            "cellRenderer": "Number",
            **({"sort": "desc"} if name == "write_error" else {}),
        }
        for name in DIFF_METRICS
    ],
    {"field": "n_rows", "headerName": "rows", "type": "rightAligned", "width": 70,
     "headerTooltip": "query rows the numbers are over"},
]  # fmt: skip


def layout() -> Any:
    """The page before anything is drawn in it."""
    return html.Div(
        [
            *parts(ALL_FIELDS, TEXT_FIELDS, KEY_FIELDS, HEADLINE_FIELDS),
            dcc.Store(id="loss-data"),
            dcc.Store(id="grid-data"),
            html.Section(html.Div(id="headline"), className="headline", **{"aria-label": "In one sentence"}),
            html.Div(
                [
                    html.Div([_text_panel(), _keys_panel()], className="column"),
                    html.Div([_heads_panel(), _table_panel()], className="column"),
                ],
                className="columns",
            ),
        ],
        className="compare",
    )


def _text_panel() -> Any:
    return panel(
        "Text",
        html.Div(id="loss-spans", className="spans"),
        html.Div(id="text", className="text", tabIndex="0", **{"aria-label": "The prompt's tokens, shaded by loss"}),
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
        html.Div(id="grid", className="grid"),
        html.Div(id="grid-legend"),
        note="layers down, heads across",
    )


def _table_panel() -> Any:
    return panel(
        "Ranked",
        dag.AgGrid(
            id="ranked",
            columnDefs=COLUMNS,
            rowData=[],
            defaultColDef={"sortable": True, "resizable": True, "suppressMovable": True},
            dashGridOptions={"rowHeight": 26, "headerHeight": 30, "tooltipShowDelay": 300, "animateRows": False},
            className="table",
        ),
        note="the same numbers as a table; click a head",
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
        tools=[html.Span(id="keys-head", className="head-name"), html.A("Open head", href="/head", **{"data-page": "/head"})],
        note="what the head reads",
    )


def _register_text(app: Dash, source: Source) -> None:
    @app.callback(Output("headline", "children"), Input(HEADLINE_FIELDS, "data"))
    def draw_headline(data: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None:
            return None
        if not selection.b:
            return message("There is one run in this trace; comparing needs a second one.", _second_run(source))
        asked = {"a": selection.a, "b": selection.b, "prompt": selection.prompt, "over": selection.over}
        try:
            loss = source.first(HEADLINE, **asked)
            run = source.first(RUN, b=selection.b, prompt=selection.prompt, over=selection.over)
            heads = source.frame(HEADS, scope=selection.scope, rows=selection.rows, **asked)
        except TraceProblem as found:
            return problem(found)
        worst = records(heads.nlargest(1, "write_error"))
        return headline(loss, run, worst[0] if worst else {}, selection)

    @app.callback(Output("loss-data", "data"), Output("loss-spans", "children"), Input(TEXT_FIELDS, "data"))
    def draw_text(data: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or not selection.prompt:
            return None, None
        asked = {"a": selection.a, "b": selection.b, "prompt": selection.prompt}
        try:
            frame = source.frame(TEXT, **asked)
            limits = source.first(TEXT_RANGE, **asked)
            spans = source.records(SPANS, prompt=selection.prompt)
        except TraceProblem as found:
            return None, problem(found)
        return text_figure(frame, limits.get("loss") or 1.0, limits.get("diff") or 1.0, spans), span_links(spans)


def _register_heads(app: Dash, source: Source) -> None:
    @app.callback(
        *[Output({"choose": field}, prop) for field in ("metric", "rows", "scope") for prop in ("data", "value")],
        Input("selection", "data"),
        Input("page", "children"),
    )
    def fill_lists(settled: dict[str, Any] | None, _: Any) -> tuple[Any, ...]:
        if not settled:
            return [], None, [], None, [], None
        values = settled["values"]
        return DIFF_METRICS, values["metric"], settled["rows"], values["rows"], settled["scopes"], values["scope"]

    @app.callback(
        Output("grid-data", "data"),
        Output("grid-legend", "children"),
        Output("ranked", "rowData"),
        Input(ALL_FIELDS, "data"),
        State("selection", "data"),
    )
    def draw_heads(data: dict[str, Any] | None, settled: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or settled is None or not selection.b:
            return None, None, []
        try:
            frame = source.frame(
                HEADS, a=selection.a, b=selection.b, prompt=selection.prompt, over=selection.over,
                scope=selection.scope, rows=selection.rows,
            )  # fmt: skip
        except TraceProblem as found:
            return {}, problem(found), []
        if frame.empty:
            return {}, message("No differences are stored for this pair and prompt.", _diff_command(source, selection)), []
        try:
            figure = grid_figure(frame, selection.metric, tuple(settled["shape"]), settled["group"])
        except ValueError as found_metric:
            return {}, message(str(found_metric)), records(frame)
        return figure, legend(figure), records(frame)


def legend(figure: dict[str, Any]) -> Any:
    """The colour bar of a grid with its ends, and the metric's definition."""
    return html.Div(
        [
            html.Span(number(figure["low"])),
            html.Span(className=f"bar {figure['scale']}"),
            html.Span(number(figure["high"])),
            html.Span(f"{figure['metric']}: {figure['meaning']}", className="note"),
        ],
        className="colour-bar",
    )


def _register_keys(app: Dash, source: Source) -> None:
    @app.callback(Output("keys", "children"), Output("keys-head", "children"), Input(KEY_FIELDS, "data"))
    def draw_keys(data: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or not selection.b or selection.layer is None:
            return None, None
        asked = {"b": selection.b, "prompt": selection.prompt, "layer": selection.layer, "head": selection.head}
        try:
            rows = source.records(KEY_ROWS, rows=selection.rows, q=selection.q, most=MOST_ROWS, **asked)
            found = [row["q_pos"] for row in rows]
            keys = source.records(KEYS, queries=found, most=MOST_KEYS, **asked)
            queries = source.records(QUERIES, prompt=selection.prompt, queries=found)
        except TraceProblem as trouble:
            return problem(trouble), selection.head_name
        if not rows:
            which = f"query {selection.q}" if selection.q is not None else selection.rows
            return message(f"No edges of {selection.head_name} are stored for {which}."), selection.head_name
        return keys_figure(rows, keys, {row["pos"]: row for row in queries}), selection.head_name


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


def _diff_command(source: Source, selection: Selection) -> str:
    return f"sparselens diff {selection.a} {selection.b} --trace {source.path}"


PAGE = Page("Compare", "/", 0, layout, register)
