"""The graph of two circuits: where nodes stand, which edges are drawn, and the figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import plotly.graph_objects as go

from sparselens.analyses.plot import CHOSEN, DOT, GREY, GRID, LOOK
from sparselens.dashboards.circuits.edge import kind, said
from sparselens.dashboards.circuits.shape import Shape
from sparselens.dashboards.selection import Selection
from sparselens.dashboards.verdict import number

COLOURS = {"A only": DOT, "B only": CHOSEN, "both": GREY}
WIDTHS = (0.7, 1.3, 2.2, 3.4, 5.0)
SYMBOLS = {"L": "circle", "M": "square"}
HANDLES = (0.3, 0.5, 0.7)
"""Where along an edge the pointer finds it."""
_STEPS = 8


def figure(
    rows: Sequence[dict[str, Any]],
    nodes: Sequence[dict[str, Any]],
    shape: Shape,
    selection: Selection,
    *,
    pair: bool,
) -> go.Figure:
    """The graph: an edge's colour says whose it is, its width |score|, a dashed one lowers the metric."""
    made = go.Figure()
    drawn = [row for row in rows if shape.node(row["sender"]) and shape.reader(row["receiver"])]
    largest = max((_size(row) for row in drawn), default=0.0)
    groups: dict[tuple[str, bool, int], list[dict[str, Any]]] = {}
    for row in drawn:
        step = min(int((_size(row) / largest if largest else 0.0) ** 0.5 * len(WIDTHS)), len(WIDTHS) - 1)
        groups.setdefault((kind(row), _score(row) > 0, step), []).append(row)
    for (whose, lowers, step), some in sorted(groups.items(), key=lambda group: group[0][2]):
        made.add_trace(_lines(some, shape, COLOURS[whose], WIDTHS[step], "dash" if lowers else "solid"))
    chosen = [row for row in drawn if f"{row['sender']}~{row['receiver']}" == selection.edge]
    if chosen:
        made.add_trace(_lines(chosen, shape, "#a055d6", 6.0, "solid"))
    made.add_trace(_shared(drawn, shape))
    made.add_trace(_handles(drawn, shape, pair=pair))
    made.add_trace(_nodes(nodes, drawn, shape, pair=pair))
    ring = shape.node(selection.node or selection.head_name)
    if ring is not None:
        made.add_trace(_ring(ring))
    _lay_out(made, shape, selection)
    return made


def _score(row: dict[str, Any]) -> float:
    """The score an edge is drawn by: A's where it is among A's, else B's."""
    return float(row["score_a" if row["in_a"] else "score_b"] or 0.0)


def _size(row: dict[str, Any]) -> float:
    own = [row[f"score_{name}"] for name in ("a", "b") if row[f"in_{name}"]]
    return max((abs(score) for score in own if score is not None), default=0.0)


def _curve(row: dict[str, Any], shape: Shape) -> Iterator[tuple[float, float]]:
    """Points of an edge, bent a little to the side so that edges along one line can be told apart."""
    start, end = shape.node(row["sender"]), shape.reader(row["receiver"])
    if start is None or end is None:
        return
    side = 1 if sum(map(ord, row["receiver"])) % 2 else -1
    bend = side * min(0.15 + 0.05 * abs(end[1] - start[1]), 0.9)
    for step in range(_STEPS + 1):
        t = step / _STEPS
        yield (
            start[0] + t * (end[0] - start[0]) + 4 * t * (1 - t) * bend,
            start[1] + t * (end[1] - start[1]),
        )


def _lines(rows: Sequence[dict[str, Any]], shape: Shape, colour: str, width: float, dash: str) -> go.Scatter:
    x: list[float | None] = []
    y: list[float | None] = []
    for row in rows:
        for across, down in _curve(row, shape):
            x.append(round(across, 3))
            y.append(round(down, 3))
        x.append(None)
        y.append(None)
    line = {"color": colour, "width": width, "dash": dash}
    return go.Scatter(
        x=x, y=y, mode="lines", line=line, opacity=0.7, hoverinfo="skip", meta="edges", connectgaps=False
    )


def _shared(rows: Sequence[dict[str, Any]], shape: Shape) -> go.Scatter:
    """Where keys and values arrive, with the heads that share them."""
    x: list[float | None] = []
    y: list[float | None] = []
    for receiver in dict.fromkeys(row["receiver"] for row in rows):
        heads, at = shape.head_of(receiver), shape.reader(receiver)
        if heads is None or at is None or not receiver.endswith((".k", ".v")):
            continue
        layer, first, share = heads
        for head in range(first, first + share):
            x += [at[0], float(head), None]
            y += [at[1], float(layer), None]
    line = {"color": "rgba(138,143,152,0.5)", "width": 0.8}
    return go.Scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip", meta="shared")


def _handles(rows: Sequence[dict[str, Any]], shape: Shape, *, pair: bool) -> go.Scatter:
    """Invisible points along the edges that answer the pointer."""
    x, y, data, words = [], [], [], []
    for row in rows:
        points = list(_curve(row, shape))
        head = shape.head_of(row["receiver"]) or (None, None, None)
        for at in HANDLES:
            across, down = points[round(at * _STEPS)]
            x.append(across)
            y.append(down)
            data.append(["edge", row["sender"], row["receiver"], *head])
            words.append(f"<b>{row['sender']} → {row['receiver']}</b><br>{said(row, pair=pair)}")
    return go.Scatter(
        x=x,
        y=y,
        mode="markers",
        marker={"size": 11, "opacity": 0, "color": GREY},
        customdata=data,
        text=words,
        hovertemplate="%{text}<extra></extra>",
        meta="handles",
    )


def _nodes(
    nodes: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]], shape: Shape, *, pair: bool
) -> go.Scatter:
    """Every sender and the logits; those that an edge of the drawing touches are larger and take its colour."""
    whose = _touched(rows, shape)
    stored = {row["node"]: row for row in nodes if row["node"]}
    placed = [(name, at) for name in (*stored, "logits") if (at := shape.node(name)) is not None]
    colours = {"A": DOT, "B": CHOSEN}
    marks = [
        (GREY if len(sides) != 1 else colours[next(iter(sides))], 10)
        if (sides := whose.get(name))
        else (GRID, 5)
        for name, _ in placed
    ]
    return go.Scatter(
        x=[at[0] for _, at in placed],
        y=[at[1] for _, at in placed],
        mode="markers",
        marker={
            "size": [size for _, size in marks],
            "color": [colour for colour, _ in marks],
            "opacity": 1,
            "line": {"width": 0},
            "symbol": [
                "square" if name[0] == "M" else "diamond" if name[0] in "il" else "circle"
                for name, _ in placed
            ],
        },
        customdata=[["node", name, None, *_place(stored.get(name, {}))] for name, _ in placed],
        text=[_told(name, stored.get(name, {}), pair=pair) for name, _ in placed],
        hovertemplate="%{text}<extra></extra>",
        meta="nodes",
    )


def _touched(rows: Sequence[dict[str, Any]], shape: Shape) -> dict[str, set[str]]:
    """Whose edges, A's or B's, touch each node; keys and values touch every head that shares them."""
    whose: dict[str, set[str]] = {}
    for row in rows:
        receiver = row["receiver"]
        names = [row["sender"]]
        if receiver == "logits" or receiver.endswith(".in"):
            names.append(receiver.removesuffix(".in"))
        heads = shape.head_of(receiver)
        if heads is not None:
            names += [f"L{heads[0]}H{heads[1] + more}" for more in range(heads[2])]
        sides = {side for side, name in (("A", "in_a"), ("B", "in_b")) if row[name]}
        for name in names:
            whose.setdefault(name, set()).update(sides)
    return whose


def _place(row: dict[str, Any]) -> tuple[int | None, int | None]:
    return (row["layer"], row["head"]) if row.get("head") is not None else (None, None)


def _told(name: str, row: dict[str, Any], *, pair: bool) -> str:
    sides = [("A", "a"), *([("B", "b")] if pair else [])]
    parts = [
        f"{side}: score {number(row.get(f'score_{key}'))}, writes {number(row.get(f'direct_{key}'))}"
        for side, key in sides
        if row
    ]
    return "<br>".join([f"<b>{name}</b>", *parts])


def _ring(at: tuple[float, float]) -> go.Scatter:
    marker = {"size": 17, "color": "rgba(0,0,0,0)", "line": {"width": 2.5, "color": "#a055d6"}}
    return go.Scatter(x=[at[0]], y=[at[1]], mode="markers", marker=marker, hoverinfo="skip", meta="chosen")


def _lay_out(made: go.Figure, shape: Shape, selection: Selection) -> None:
    made.update_layout(
        template=LOOK,
        font={"size": 11},
        margin={"l": 44, "r": 30, "t": 26, "b": 8},
        modebar={"orientation": "v", "bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": CHOSEN},
        height=max(360, min(29 * (shape.layers + 2), 980)),
        showlegend=False,
        hovermode="closest",
        dragmode=False,
        uirevision=f"{selection.circuit_a} {selection.circuit_b}",
    )
    step = 1 if shape.layers <= 16 else 2 if shape.layers <= 40 else 4
    layers = range(0, shape.layers, step)
    made.update_yaxes(
        range=[shape.layers + 0.6, -1.6],
        tickvals=[-1, *layers, shape.layers],
        ticktext=["input", *[f"L{layer}" for layer in layers], "logits"],
        zeroline=False,
    )
    wide = max(1, -(-shape.heads // 12))
    heads = range(0, shape.heads, wide)
    made.update_xaxes(
        range=[-0.9, shape.heads + 0.9],
        side="top",
        tickvals=[*heads, shape.heads + 0.2],
        ticktext=[*[f"H{head}" for head in heads], "MLP"],
        showgrid=False,
        zeroline=False,
    )
