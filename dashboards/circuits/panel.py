"""The panels of the graph of circuits and of its edges."""

from __future__ import annotations

from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, dcc, html

from sparselens.dashboards.circuits.circuit import compared
from sparselens.dashboards.circuits.edge import EDGE, HELD, edges, kind, said
from sparselens.dashboards.circuits.graph import COLOURS
from sparselens.dashboards.circuits.graph import figure as graph
from sparselens.dashboards.circuits.shape import Shape
from sparselens.dashboards.circuits.table import (
    defined,
    edge_columns,
    nodes,
)
from sparselens.dashboards.export.link import save_buttons
from sparselens.dashboards.page import HIDDEN, chosen, panel, part, problem, switch, table, table_height
from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.selection import Selection
from sparselens.dashboards.verdict import percent

EMPTY: dict[str, Any] = {"data": [], "layout": {}}
BUTTONS = [["zoomIn2d", "zoomOut2d", "pan2d", "resetScale2d"]]
SIZES = (50, 100, 200, 500, 1000)
BOTH = ("circuit_a", "circuit_b")
GRAPH_FIELDS = part(*BOTH, "size", "near", "node", "layer", "head", "edge")


def graph_panel() -> Any:
    """The graph before anything is drawn in it."""
    sizes = [(str(size), f"{size:,}") for size in SIZES]
    return panel(
        "Graph",
        html.Div(id="circuit-legend", className="circuit-legend"),
        dcc.Graph(
            id="circuit-graph",
            figure=EMPTY,
            config={"displaylogo": False, "modeBarButtons": BUTTONS},
            className="circuit-graph",
        ),
        html.Div(id="circuit-graph-note", className="notes"),
        tools=[
            _sizes(sizes),
            switch("Which edges", "near", [("all", "All nodes"), ("node", "The chosen node")]),
            save_buttons(),
        ],
        note="input on top, logits below; a click on a node or an edge selects it",
        name="panel-graph",
    )


def _sizes(sizes: list[tuple[str, str]]) -> Any:
    """How many edges are drawn, smallest first; the default is that of the selection."""
    made = switch("Edges of each circuit", "size", sizes)
    initial = str(Selection().size)
    for button in made.children:
        setattr(button, "data-initial", initial)
        pressed = getattr(button, "data-option") == f"size={initial}"
        setattr(button, "aria-pressed", str(pressed).lower())
    return made


def edge_panel() -> Any:
    """The edges before they are there."""
    return panel(
        "Edges",
        html.Div(id="circuit-edge", **{"aria-live": "polite"}),
        table("circuit-edges", []),
        note="those of the graph",
        name="panel-edges",
    )


def register_graph(app: Dash, source: Source) -> None:
    """Wire the graph and its edges to the selection."""

    def draw(data: dict[str, Any] | None) -> tuple[Any, ...]:
        selection = chosen(data)
        if selection is None or not selection.circuit_a:
            return None, EMPTY, HIDDEN, None, None, [], [], HIDDEN
        try:
            return _graph(source, selection)
        except SourceError as trouble:
            return None, EMPTY, HIDDEN, problem(trouble), None, [], [], HIDDEN

    app.callback(
        Output("circuit-legend", "children"),
        Output("circuit-graph", "figure"),
        Output("circuit-graph", "style"),
        Output("circuit-graph-note", "children"),
        Output("circuit-edge", "children"),
        Output("circuit-edges", "columnDefs"),
        Output("circuit-edges", "rowData"),
        Output("circuit-edges", "style"),
        Input(GRAPH_FIELDS, "data"),
    )(draw)
    app.clientside_callback(
        ClientsideFunction("sparselens", "circuit"),
        Input("circuit-graph", "clickData"),
        prevent_initial_call=True,
    )


def _graph(source: Source, selection: Selection) -> tuple[Any, ...]:
    a, b = compared(source, selection)
    asked: dict[str, Any] = {"a": selection.circuit_a, "b": selection.circuit_b if b else None}
    shape = Shape.of(source, selection.circuit_a)
    at = selection.node or selection.head_name
    near = at if selection.near == "node" else ""
    rows = edges(source, asked, selection.size, near, shape.reads(near) if near else [])
    made = graph(rows, nodes(source, asked), shape, selection, pair=b is not None)
    held = {bool(row["is_a"]): row for row in source.records(HELD, size=selection.size, **asked)}
    listed = [_edge_row(row, shape, pair=b is not None) for row in rows]
    note = _graph_note(selection, held, near, len(rows), [each for each in (a, b) if each])
    return (
        _legend(rows, pair=b is not None, size=selection.size),
        made,
        {"height": f"{made.layout.height}px"},
        note,
        _edge(source, selection, shape, asked),
        edge_columns(pair=b is not None),
        listed,
        table_height(min(len(rows), 30), 26),
    )


def _edge_row(row: dict[str, Any], shape: Shape, *, pair: bool) -> dict[str, Any]:
    layer, head, share = shape.head_of(row["receiver"]) or (None, None, None)
    return {
        **row,
        "edge": f"{row['sender']} → {row['receiver']}",
        "kind": kind(row) if pair else "A",
        "layer": layer,
        "head": head,
        "share": share,
    }


def _legend(rows: list[dict[str, Any]], *, pair: bool, size: int) -> list[Any]:
    """What colours and dashes mean, with how many edges there are of each."""
    counts = {name: sum(kind(row) == name for row in rows) for name in COLOURS}
    said_of = {
        "A only": f"among A's best {size:,} alone" if pair else "A",
        "B only": f"among B's best {size:,} alone",
        "both": "among both",
    }
    shown = [
        html.Span(
            [html.I(className="edge-line", style={"borderColor": colour}), f"{counts[name]} {said_of[name]}"]
        )
        for name, colour in COLOURS.items()
        if pair or name == "A only"
    ]
    return [
        *shown,
        html.Span([html.I(className="edge-line"), "raises the metric"]),
        html.Span([html.I(className="edge-line dashed"), "lowers it"]),
    ]


def _graph_note(
    selection: Selection,
    held: dict[bool, dict[str, Any]],
    near: str,
    count: int,
    both: list[dict[str, Any]],
) -> list[Any]:
    lines = []
    if not near:
        lines = [
            f"{side}: the best {min(selection.size, held[is_a]['n']):,} of its {held[is_a]['n']:,} edges, "
            f"{percent(held[is_a]['share'])} of its Σ |score|."
            for side, is_a in (("A", True), ("B", False))
            if is_a in held and held[is_a]["n"]
        ]
    elif not count:
        lines.append(f"No edge of {near} is in these circuits.")
    else:
        lines.append(f"Only the edges of {near}: up to {selection.size:,} of each circuit.")
    lines.append(
        "Width: |score|, the larger one's. Dashed: ablating the edge would raise the metric, in A where both have it. "
        f"Score: {defined('circuit_edges', 'score')}. Best: by |score| among the edges of a circuit, so that "
        "circuits are compared at equal size. Keys and values arrive above the heads that share them; edges have "
        "no position."
    )
    far = [circuit["circuit"] for circuit in both if circuit["metric"] != both[0]["metric"]]
    if far:
        lines.append("A and B measure different things: widths are not comparable between them.")
    return [html.P(line, className="note") for line in lines]


def _edge(source: Source, selection: Selection, shape: Shape, asked: dict[str, Any]) -> Any:
    """The chosen edge in words, with the heads that read it."""
    if not selection.edge:
        return html.P("No edge is chosen.", className="note")
    sender, _, receiver = selection.edge.partition("~")
    found = {
        bool(row["is_a"]): row for row in source.records(EDGE, sender=sender, receiver=receiver, **asked)
    }
    row: dict[str, Any] = {}
    for name, is_a in (("a", True), ("b", False)):
        row[f"score_{name}"] = found.get(is_a, {}).get("score")
        row[f"rank_{name}"] = found.get(is_a, {}).get("rank")
    inside = [
        side for side, is_a in (("A", True), ("B", False)) if is_a in found and found[is_a]["in_circuit"]
    ]
    words = (
        f" {said(row, pair=asked['b'] is not None)}; in the circuit of {' and '.join(inside) or 'neither'}."
    )
    reads = shape.head_of(receiver)
    links: list[Any] = []
    if reads is not None:
        layer, first, share = reads
        links = [" Read by ", *_links(layer, range(first, first + share))]
    return html.P(
        [html.B(f"{sender} → {receiver}", className="mono"), words, *links], className="chosen-edge"
    )


def _links(layer: int, heads: range) -> list[Any]:
    made: list[Any] = []
    for head in heads:
        name = f"L{layer}H{head}"
        go_to = f'{{"layer":{layer},"head":{head}}}'
        made += [
            html.Button(
                name,
                type="button",
                className="link",
                title=f"Select {name}",
                **{"data-go": go_to, "data-cell": name},
            ),
            " ",
        ]
    return made
