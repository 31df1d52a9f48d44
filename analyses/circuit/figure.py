"""A circuit as a drawing: layers as rows, heads and MLPs as nodes, edges by size and sign; or two on one another."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from sparselens.analyses.plot import GREY, LOOK
from sparselens.storage.reader import connect
from sparselens.storage.trace import Trace

COLOURS = {
    "A only": "#4477aa",
    "B only": "#ee6677",
    "both": "#228833",
    "raises": "#4477aa",
    "lowers": "#ee6677",
}
EDGES = """
SELECT circuit, sender, receiver, score, rank FROM circuit_edges_history
WHERE analysis_id = $analysis AND in_circuit ORDER BY rank
"""
_NODE = re.compile(r"L(\d+)H(\d+)|M(\d+)")


def drawn(trace: Trace, analysis_id: str, options: Mapping[str, Any]) -> go.Figure:
    """Return the circuit of an answer, its `edges` (100) largest; under a policy with the base's, which is A."""
    extra = trace.run(analysis_id).record.extra
    count = int(options.get("edges", 100))
    with connect(trace.path) as connection:

        def read(run: str) -> pd.DataFrame:
            frame: pd.DataFrame = connection.sql(EDGES, {"analysis": run}, max_rows=None).df()
            return frame.head(count)

        if extra["circuit"] is None:
            raise ValueError("the model does not do this task: there is no circuit to draw")
        own = read(analysis_id)
        if extra["base_run"] is None:
            return figure(signed(own))
        return figure(merged(read(extra["base_run"]), own))


def signed(edges: pd.DataFrame) -> pd.DataFrame:
    """Return edges with `kind`: `raises` where the edge raises the metric (ablating it lowers it), else `lowers`."""
    kind = edges["score"].map(lambda score: "raises" if score < 0 else "lowers")
    return edges.assign(kind=kind, size=edges["score"].abs())


def merged(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Return the edges of two circuits with `kind`: `A only`, `B only` or `both`, and the larger `size`."""
    joined = first.merge(second, on=["sender", "receiver"], how="outer", suffixes=("_a", "_b"))
    in_a, in_b = joined["score_a"].notna(), joined["score_b"].notna()
    kind = ["both" if a and b else "A only" if a else "B only" for a, b in zip(in_a, in_b, strict=True)]
    size = joined[["score_a", "score_b"]].abs().max(axis=1)
    score = joined["score_a"].fillna(joined["score_b"])
    return joined.assign(kind=kind, size=size, score=score)[["sender", "receiver", "score", "kind", "size"]]


def node(receiver: str) -> str:
    """Return the node that a receiver belongs to: a head, a key-value head, an MLP, `logits`."""
    return receiver.partition(".")[0]


def place(name: str, layers: int) -> tuple[float, float]:
    """Return where a node is drawn, x and y: its layer is its row, MLPs stand right of the heads."""
    if name == "input":
        return 4.0, -1.0
    if name == "logits":
        return 4.0, float(layers)
    found = _NODE.fullmatch(name)
    if found is None:  # a key-value head, L3G1
        layer, _, group = name[1:].partition("G")
        return -2.0 - int(group), float(layer)
    layer, head, mlp = found.groups()
    return (-1.0, float(mlp)) if mlp is not None else (float(head), float(layer))


def figure(edges: pd.DataFrame) -> go.Figure:
    """Return edges with `sender`, `receiver`, `score`, `kind` and `size` as a drawing, a trace a kind and one of nodes.

    Thicker is larger. Key-value heads and MLPs stand left of the query heads.
    """
    names = list(dict.fromkeys([*edges["sender"], *edges["receiver"].map(node)]))
    numbered = [int(each) for name in names for each in re.findall(r"^[LM](\d+)", name)]
    layers = max(numbered, default=0) + 1
    at = {name: place(name, layers) for name in names}
    made = go.Figure()
    largest = float(edges["size"].max()) if len(edges) else 1.0
    for kind, part in edges.groupby("kind", sort=True):
        listed = False
        for step, (low, high) in enumerate(((0.0, 0.2), (0.2, 0.5), (0.5, 1.01))):
            some = part[(part["size"] / largest >= low) & (part["size"] / largest < high)]
            if len(some):
                made.add_trace(_lines(some, at, str(kind), step).update(showlegend=not listed))
                listed = True
    made.add_trace(
        go.Scatter(
            x=[at[name][0] for name in names],
            y=[at[name][1] for name in names],
            mode="markers+text",
            text=names,
            textposition="top center",
            textfont={"size": 9},
            marker={"size": 8, "color": GREY},
            hoverinfo="text",
            showlegend=False,
        )
    )
    made.update_layout(
        template=LOOK,
        margin={"l": 50, "r": 10, "t": 10, "b": 30},
        height=max(420, 26 * layers),
        yaxis_title="layer",
    )
    made.update_xaxes(visible=False)
    made.update_yaxes(zeroline=False)
    return made


def _lines(edges: pd.DataFrame, at: Mapping[str, tuple[float, float]], kind: str, step: int) -> go.Scatter:
    """Return the edges of one kind and thickness as one trace."""
    x: list[float | None] = []
    y: list[float | None] = []
    words: list[str | None] = []
    for sender, receiver, score in zip(edges["sender"], edges["receiver"], edges["score"], strict=True):
        start, end = at[sender], at[node(receiver)]
        x += [start[0], end[0], None]
        y += [start[1], end[1], None]
        words += [f"{sender} → {receiver}: {score:+.3g}"] * 2 + [None]
    return go.Scatter(
        x=x,
        y=y,
        mode="lines",
        name=kind,
        legendgroup=kind,
        line={"color": COLOURS[kind], "width": (0.7, 1.8, 3.5)[step]},
        text=words,
        hoverinfo="text",
        opacity=0.75,
    )
