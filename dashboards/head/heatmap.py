"""The three maps A, B and B − A of one head, on one range, as cells and as figures on the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from dash import html
from numpy.typing import NDArray

from sparselens.dashboards.head.pattern import EXACT_CELLS, Cells, cells
from sparselens.dashboards.head.value_map import value_cells, value_words
from sparselens.dashboards.head.weigh import VALUE
from sparselens.dashboards.picture import Scale
from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.selection import Selection
from sparselens.dashboards.verdict import number

LENGTH = "SELECT n_tokens AS n FROM prompts WHERE prompt_id = $prompt"
TICKS = 5
BAR = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Drawn:
    """Cells of one map and the scale they are drawn on; `values` is `[rows, columns]`."""

    values: NDArray[np.float64]
    scale: Scale
    cells: Cells


def maps(source: Source, selection: Selection) -> dict[str, Drawn]:
    """The maps there are, by side: `a`, `b` and, when both exist on the same cells, `diff` (B − A).

    A and B share the range 0 … their maximum; the difference runs from −m to m. When only one of them can
    be exact, both are pooled. Raises SourceError when nothing is stored.
    """
    fields = ("a", "b", "prompt", "layer", "head", "qs", "ks", "hide", "scale", "weigh")
    name = "maps " + " ".join(str(getattr(selection, field)) for field in fields)
    return source.kept(name, lambda: _maps(source, selection))


def _maps(source: Source, selection: Selection) -> dict[str, Drawn]:
    length = source.first(LENGTH, prompt=selection.prompt).get("n") or 0
    found = value_cells(source, selection, length) if selection.weigh == VALUE else {}
    for side in ("a", "b") if selection.weigh != VALUE else ():
        run = getattr(selection, side)
        got = cells(source, run, selection, length) if run and length else None
        if got is not None:
            found[side] = got
    if not found:
        raise SourceError(f"No attention map of {selection.head_name} is stored for this prompt.")
    if len(found) == 2 and found["a"].exact != found["b"].exact:
        for side in ("a", "b"):
            pooled = cells(source, getattr(selection, side), selection, length, exact=False)
            if pooled is None:
                raise SourceError("Only one of the runs kept q and k, and the other has no pooled map.")
            found[side] = pooled
    if selection.hide == "1":
        found = {side: each.without_first_key() for side, each in found.items()}
    high = max(float(np.nanmax(np.nan_to_num(each.values), initial=0.0)) for each in found.values())
    drawn = {side: Drawn(each.values, Scale(selection.scale, high), each) for side, each in found.items()}
    if len(found) == 2 and found["a"].values.shape == found["b"].values.shape:
        change = found["b"].values - found["a"].values
        most = float(np.max(np.abs(np.nan_to_num(change)), initial=0.0))
        drawn["diff"] = Drawn(change, Scale(selection.scale, most, diverging=True), found["b"])
    return drawn


def side_cells(source: Source, selection: Selection, side: str) -> Drawn:
    """One of the maps; SourceError when that one is not stored."""
    drawn = maps(source, selection)
    if side not in drawn:
        raise SourceError(f"No map {side} is stored for this prompt and pair.")
    return drawn[side]


def map_figures(
    drawn: dict[str, Drawn], selection: Selection, sinks: dict[str, float | None], seen: str
) -> list[Any]:
    """The maps as figures: image, ticks, colour bar, sink mass. `sinks` is the mean mass on key 0 by side."""
    titles = {"a": "A", "b": "B", "diff": "B − A"}
    return [
        html.Figure(
            [
                html.Figcaption([html.B(titles[side]), html.Span(_sink(sinks.get(side)), className="note")]),
                _frame(each, side, selection, seen),
                _bar(each.scale),
            ],
            className="map",
        )
        for side, each in drawn.items()
    ]


def how(each: Cells, weigh: str = "attention") -> str:
    """How the cells came about, in words."""
    if weigh == VALUE:
        return value_words(each)
    if each.exact:
        return "Exact cells: softmax of the kept q and k (float16) under the recorded selection."
    words = f"Pooled, {each.pool} × {each.pool} tokens a cell: mean over queries of the summed mass on keys."
    if each.kept_vectors and not each.note:
        words += f" Zoom to {EXACT_CELLS} × {EXACT_CELLS} or less for exact cells."
    return f"{words} {each.note}" if each.note else words


def _sink(mass: float | None) -> str:
    return "" if mass is None else f" sink mass (key 0) {number(mass)}"


def _frame(each: Drawn, side: str, selection: Selection, seen: str) -> Any:
    window = each.cells
    rows, columns = each.values.shape
    search = selection.search(side=side, sql="", q=None)
    search += "" if "side=" in search else f"&side={side}"
    shape = {
        "q0": window.queries.start, "q1": window.queries.stop,
        "k0": window.keys.start, "k1": window.keys.stop, "pool": window.pool,
        "rows": rows, "columns": columns,
    }  # fmt: skip
    label = (
        f"{selection.head_name}, map {side}: "
        f"queries {window.queries.start} to {window.queries.stop - 1} down, "
        f"keys {window.keys.start} to {window.keys.stop - 1} across"
    )
    address = f"/view/map.png{search}&seen={seen}"
    images = [
        html.Div(
            className=f"picture only-{theme}",
            role="img",
            style={"backgroundImage": f'url("{address}&theme={theme}")'},
            **{"aria-label": label},
        )
        for theme in ("light", "dark")
    ]
    return html.Div(
        [
            html.Span("query", className="axis axis-q"),
            html.Div(_ticks(window.queries.start, window.queries.stop), className="ticks ticks-q"),
            html.Div(
                [
                    *images,
                    html.Div(className="map-cross", hidden=True),
                    html.Div(className="map-band", hidden=True),
                ],
                className="map-frame",
                **{
                    "data-shape": _json(shape),
                    "data-cells": f"/view/cells{search}&seen={seen}",
                    "data-name": {"a": "A", "b": "B", "diff": "B−A"}[side],
                },
            ),
            html.Div(_ticks(window.keys.start, window.keys.stop), className="ticks ticks-k"),
            html.Span("key", className="axis axis-k"),
        ],
        className="map-plot",
    )


def _ticks(start: int, stop: int) -> list[Any]:
    last = max(TICKS - 1, 1)
    return [html.Span(str(start + (stop - 1 - start) * i // last)) for i in range(TICKS)]


def _bar(scale: Scale) -> Any:
    """The colour bar with the value at its quarters, so that the scale is readable off it."""
    kind = "div" if scale.diverging else "seq"
    marks = [html.Span(number(scale.value(place), 3)) for place in BAR]
    return html.Div(
        [
            html.Span(className=f"bar {kind}"),
            html.Div(marks, className="marks"),
            html.Span(f"{scale.kind} scale", className="note"),
        ],
        className="map-bar",
    )


def _json(value: dict[str, int]) -> str:
    return "{" + ",".join(f'"{name}":{number_}' for name, number_ in value.items()) + "}"
