"""Circuits: which edges carry a task in A and B, how much they carry, and what a policy leaves of them."""

from __future__ import annotations

from typing import Any

from dash import Dash, Input, Output, State, dcc, html, no_update

from sparselens.dashboards.circuits.choice import run_pair, settle
from sparselens.dashboards.circuits.circuit import (
    NONE,
    WITHOUT,
    Circuits,
    circuits,
    command,
    label,
    off_pair,
    table,
)
from sparselens.dashboards.circuits.panel import (
    GRAPH_FIELDS,
    edge_panel,
    graph_panel,
    register_graph,
)
from sparselens.dashboards.circuits.table_panel import (
    TABLE_FIELDS,
    curve_panel,
    register_tables,
    table_panels,
)
from sparselens.dashboards.page import Page, chosen, message, panel, part, parts, problem
from sparselens.dashboards.picker import filled
from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.selection import Selection

LIST_FIELDS = part("a", "b", "task", "circuit_a", "circuit_b")
HEAD_FIELDS = part("layer", "head", "node", "circuit_a")


def layout() -> Any:
    """The page before anything is drawn in it."""
    return html.Div(
        [
            *parts(LIST_FIELDS, HEAD_FIELDS, GRAPH_FIELDS, TABLE_FIELDS),
            html.Header(
                [
                    html.H1("Circuits"),
                    html.Div(id="circuit-head", className="chosen-head", **{"aria-live": "polite"}),
                ],
                className="page-head",
            ),
            dcc.Store(id="circuit-there", data=False),
            html.Div(id="circuit-missing"),
            html.Div(id="circuit-body"),
        ],
        className="circuits-page",
    )


def body() -> list[Any]:
    """The panels, once there is a circuit to draw: the code of graph and tables is loaded with them."""
    return [
        panel(
            "Circuits of this trace",
            html.Div(id="circuit-lists", className="controls"),
            html.Div(id="circuit-off"),
            html.Div(id="circuit-table", className="scroll circuit-table"),
            note="task × policy; A and B choose what is compared",
            name="panel-circuits",
        ),
        html.Div([graph_panel(), edge_panel()], className="columns circuit-columns"),
        curve_panel(),
        *table_panels(),
    ]


def _register_body(app: Dash, source: Source) -> None:
    def draw(data: dict[str, Any] | None, there: bool | None) -> tuple[Any, ...]:
        selection = chosen(data)
        if selection is None:
            return None, None, False
        try:
            found, without = circuits(source), source.records(WITHOUT)
            runs = run_pair(source, selection)
        except SourceError as trouble:
            return problem(trouble), None, False
        if found:
            return None, no_update if there else body(), True
        lacking = [table({}, without, selection)] if without else []
        said = message("No circuit is stored in this trace.", _commands(source, runs, selection))
        return [said, *lacking], None, False

    app.callback(
        Output("circuit-missing", "children"),
        Output("circuit-body", "children"),
        Output("circuit-there", "data"),
        Input(LIST_FIELDS, "data"),
        State("circuit-there", "data"),
    )(draw)


def _register_lists(app: Dash, source: Source) -> None:
    def draw(data: dict[str, Any] | None) -> tuple[Any, ...]:
        selection = chosen(data)
        try:
            found, without = circuits(source), source.records(WITHOUT)
            runs = run_pair(source, selection) if selection is not None else {}
        except SourceError:
            found = {}
        if selection is None or not found:  # `circuit-missing` says why
            return None, None, None
        off = off_pair(found, runs, selection)
        return _lists(found, selection), _off(off) if off else None, table(found, without, selection)

    app.callback(
        Output("circuit-lists", "children"),
        Output("circuit-off", "children"),
        Output("circuit-table", "children"),
        Input(LIST_FIELDS, "data"),
    )(draw)


def _commands(source: Source, runs: dict[str, dict[str, Any]], selection: Selection) -> str:
    """The commands that make the rows: the base's circuit, and that of B's policy."""
    policy = runs.get(selection.b, {}).get("policy", "")
    lines = [command(source), command(source, policy or "a_shape(sink=4,window=64)")]
    return "\n".join(lines)


def _off(said: str) -> Any:
    go_to = '{"circuit_a":null,"circuit_b":null,"task":null,"edge":null}'
    words = "Show those of the runs' policies, if there are any"
    return html.P(
        [f"{said}. ", html.Button(words, type="button", className="link", **{"data-go": go_to})],
        className="note",
    )


def _lists(found: Circuits, selection: Selection) -> list[Any]:
    """The pickers: the task, A's circuit, B's circuit of the same model or none."""
    tasks = list(dict.fromkeys(row["prompts"] for row in found.values() if row["prompts"]))
    names = [{"value": name, "label": label(row)} for name, row in found.items()]
    model = found.get(selection.circuit_a, {}).get("model")
    others = [
        each
        for each in names
        if found[each["value"]]["model"] == model and each["value"] != selection.circuit_a
    ]
    alone = {"value": NONE, "label": "none: A alone"}
    return [
        filled("task", "Task", "The task and its prompts", tasks, selection.task, wide=True),
        filled("circuit_a", "A", "A's circuit", names, selection.circuit_a, wide=True),
        filled("circuit_b", "B", "B's circuit", [*others, alone], selection.circuit_b, wide=True),
    ]


def _register_head(app: Dash) -> None:
    def draw(data: dict[str, Any] | None) -> Any:
        selection = chosen(data)
        if selection is None or not selection.circuit_a or not selection.head_name:
            return None
        links = (("Open head", "/head"), ("Heads", "/heads"))
        return [
            html.B(selection.node or selection.head_name, className="mono"),
            *[html.A(text, href=path, **{"data-page": path}) for text, path in links],
        ]

    app.callback(Output("circuit-head", "children"), Input(HEAD_FIELDS, "data"))(draw)


def register(app: Dash, source: Source) -> None:
    """Wire the panels to the selection."""
    _register_body(app, source)
    _register_lists(app, source)
    _register_head(app)
    register_graph(app, source)
    register_tables(app, source)


PAGE = Page("Circuits", "/circuits", 6, layout, register, settle)
