"""Circuits: which edges carry a task in A and B, how much they carry, and what a policy leaves of them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from dash import Dash, Input, Output, html

from sparselens.dashboards.choice import NO_RUN
from sparselens.dashboards.circuit import (
    NONE,
    PAIR,
    WITHOUT,
    Circuits,
    circuits,
    command,
    first_pair,
    first_task,
    label,
    off_pair,
    table,
)
from sparselens.dashboards.circuit_panel import (
    GRAPH_FIELDS,
    SIZES,
    TABLE_FIELDS,
    curve_panel,
    edge_panel,
    graph_panel,
    register_graph,
    register_tables,
    table_panels,
)
from sparselens.dashboards.circuit_table import nodes
from sparselens.dashboards.page import Page, chosen, message, panel, part, parts, problem
from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.score_list import filled
from sparselens.dashboards.selection import Selection
from sparselens.dashboards.shell import picker

LIST_FIELDS = part("a", "b", "task", "circuit_a", "circuit_b")
HEAD_FIELDS = part("layer", "head", "node", "circuit_a")
THERE = """
SELECT count(*) AS n FROM circuit_edges
WHERE circuit IN ($a, $b) AND sender = $sender AND receiver = $receiver
"""
_OTHER_NODE = re.compile(r"M\d{1,4}|input|logits")


def _runs(source: Source, selection: Selection) -> dict[str, dict[str, Any]]:
    if not selection.a:
        return {}
    return {
        row["run_id"]: row
        for row in source.records(PAIR, a=selection.a, b=selection.b or None)
        if row["policy"]
    }


def settle(source: Source, selection: Selection, notices: list[str]) -> Selection:
    """The selection with a task and circuits that the trace has; circuits need no captured run."""
    if NO_RUN in notices:
        notices.remove(NO_RUN)
    found = circuits(source)
    if not found:
        return replace(selection, task="", circuit_a="", circuit_b="", edge="", node="")
    task, a, b = _chosen(found, _runs(source, selection), selection, notices)
    size = selection.size
    if not 1 <= size <= SIZES[-1]:
        size = min(max(size, 1), SIZES[-1])
        notices.append(f"The graph shows 1 to {SIZES[-1]:,} edges of a circuit, not {selection.size:,}.")
    settled = replace(selection, task=task, circuit_a=a, circuit_b=b, size=size)
    settled = _with_head(source, settled)
    return replace(settled, node=_node(selection.node, notices), edge=_edge(source, settled, notices))


def _chosen(
    found: Circuits, runs: dict[str, dict[str, Any]], selection: Selection, notices: list[str]
) -> tuple[str, str, str]:
    """Task and circuits: as asked, else of the runs' policies."""
    a, b, task = selection.circuit_a, selection.circuit_b, selection.task
    known = {row["prompts"] for row in found.values()}
    for name, asked, there in (
        ("circuit", a, a in found),
        ("circuit", b, b in found or b == NONE),
        ("task", task, task in known),
    ):
        if asked and not there:
            notices.append(f"There is no {name} {asked[:60]!r} in this trace; another was chosen.")
    if a in found:
        task = found[a]["prompts"]
    elif task not in known:
        task = found[b]["prompts"] if b in found else first_task(found, runs)
    first, second = first_pair(found, task, runs, selection)
    a = a if a in found else first if first != b else next((each for each in found if each != b), first)
    if b in found and found[b]["model"] != found[a]["model"]:
        notices.append("B's circuit is of another model than A's: their nodes are not the same.")
        b = NONE
    if b not in found and b != NONE:
        b = second if second != a else first if first != a else NONE
    return task, a, NONE if b == a else b


def _with_head(source: Source, selection: Selection) -> Selection:
    """The selection with the head of largest score where none is chosen."""
    if selection.layer is not None and selection.head is not None:
        return selection
    b = None if selection.circuit_b == NONE else selection.circuit_b
    rows = nodes(source, {"a": selection.circuit_a, "b": b})
    best = next((row for row in rows if row["layer"] is not None and row["head"] is not None), None)
    return replace(selection, layer=best["layer"], head=best["head"]) if best else selection


def _node(asked: str, notices: list[str]) -> str:
    """A node that is not a head; heads are chosen by layer and head."""
    if asked and not _OTHER_NODE.fullmatch(asked):
        notices.append(f"There is no node {asked[:40]!r}; name `input`, `logits` or an MLP such as M3.")
        return ""
    return asked


def _edge(source: Source, selection: Selection, notices: list[str]) -> str:
    if not selection.edge:
        return ""
    sender, _, receiver = selection.edge.partition("~")
    there = source.first(
        THERE, a=selection.circuit_a, b=selection.circuit_b, sender=sender, receiver=receiver
    )
    if there.get("n"):
        return selection.edge
    notices.append(f"No edge {selection.edge[:60]!r} is stored for these circuits.")
    return ""


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
            html.Div(id="circuit-missing"),
            html.Div(
                [
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
                ],
                id="circuit-body",
                style={"display": "none"},
            ),
        ],
        className="circuits-page",
    )


def _register_lists(app: Dash, source: Source) -> None:
    def draw(data: dict[str, Any] | None) -> tuple[Any, ...]:
        selection = chosen(data)
        if selection is None:
            return None, None, None, None, {"display": "none"}
        try:
            found, without = circuits(source), source.records(WITHOUT)
            runs = _runs(source, selection)
        except SourceError as trouble:
            return None, None, None, problem(trouble), {"display": "none"}
        if not found:
            lacking = [table({}, without, selection)] if without else []
            said = message("No circuit is stored in this trace.", _commands(source, runs, selection))
            return None, None, None, [said, *lacking], {"display": "none"}
        off = off_pair(found, runs, selection)
        return (
            _lists(found, selection),
            _off(off) if off else None,
            table(found, without, selection),
            None,
            {},
        )

    app.callback(
        Output("circuit-lists", "children"),
        Output("circuit-off", "children"),
        Output("circuit-table", "children"),
        Output("circuit-missing", "children"),
        Output("circuit-body", "style"),
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
        filled(picker("task", "Task", "The task and its prompts", wide=True), tasks, selection.task),
        filled(picker("circuit_a", "A", "A's circuit", wide=True), names, selection.circuit_a),
        filled(picker("circuit_b", "B", "B's circuit", wide=True), [*others, alone], selection.circuit_b),
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
    _register_lists(app, source)
    _register_head(app)
    register_graph(app, source)
    register_tables(app, source)


PAGE = Page("Circuits", "/circuits", 2, layout, register, settle)
