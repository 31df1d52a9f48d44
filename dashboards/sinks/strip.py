"""A number of every layer and token as a strip: layers down, positions across, for A and B on one scale."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from dash import html
from numpy.typing import NDArray

from sparselens.dashboards.head.heatmap import LENGTH
from sparselens.dashboards.picture import Scale, png
from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.selection import Selection
from sparselens.dashboards.verdict import number

Floats: TypeAlias = NDArray[np.float64]
MOST_COLUMNS = 768
TOKENS = """
SELECT layer, pos // $pool AS place, max(value) AS value
FROM (SELECT layer, pos, {value} AS value FROM token_stats WHERE run_id = $run AND prompt_id = $prompt)
GROUP BY ALL HAVING max(value) IS NOT NULL
"""
VALUES = {
    "received": "received_mass",
    "norm": "resid_norm / nullif(median(resid_norm) FILTER (WHERE pos > 0) OVER (PARTITION BY layer), 0)",
}
MEANINGS = {
    "received": "mass that a token receives as a key, mean over heads, ÷ the number of queries that can see it",
    "norm": "norm of the residual stream that enters the layer ÷ its median over the layer's later tokens",
}
NAMES = {"received": "received mass", "norm": "residual norm, × the median"}


def strips(source: Source, selection: Selection) -> dict[str, Floats]:
    """`[layers, columns]` by side `a` and `b`; a column is `pool(length)` positions, their largest value.

    Raises SourceError when the runs have no row of token_stats for the prompt.
    """
    fields = ("a", "b", "prompt", "strip")
    name = "strips " + " ".join(str(getattr(selection, field)) for field in fields)
    return source.kept(name, lambda: _strips(source, selection))


def _strips(source: Source, selection: Selection) -> dict[str, Floats]:
    sql = TOKENS.format(value=VALUES[selection.strip])
    length = int(source.first(LENGTH, prompt=selection.prompt).get("n") or 0)
    found = {}
    for side in ("a", "b"):
        run = getattr(selection, side)
        if not run or not length:
            continue
        frame = source.frame(sql, run=run, prompt=selection.prompt, pool=pool(length))
        if frame.empty:
            continue
        cells = np.full((int(frame["layer"].max()) + 1, -(-length // pool(length))), np.nan)
        cells[frame["layer"].to_numpy(), frame["place"].to_numpy()] = frame["value"].to_numpy()
        found[side] = cells
    if not found:
        raise SourceError(
            "No token_stats are stored for this prompt: captures write them unless --layers or --heads leaves them out."
        )
    return found


def pool(length: int) -> int:
    """How many positions share a column."""
    return -(-length // MOST_COLUMNS)


def highest(found: dict[str, Floats]) -> float:
    """The top of the scale that both strips share."""
    return max(float(np.nanmax(np.nan_to_num(each), initial=0.0)) for each in found.values())


def strip_cells(source: Source, selection: Selection) -> tuple[Floats, Scale]:
    """The cells of the selection's side and their scale; SourceError when that side has none."""
    found = strips(source, selection)
    if selection.side not in found:
        raise SourceError(f"No token_stats of side {selection.side} are stored for this prompt.")
    return found[selection.side], Scale(selection.scale, highest(found))


def strip_png(source: Source, selection: Selection, theme: str) -> bytes:
    """The strip of the selection's side as an image, one pixel a cell."""
    cells, scale = strip_cells(source, selection)
    return png(cells, scale, theme)


def strip_figures(found: dict[str, Floats], selection: Selection, length: int, seen: str) -> list[Any]:
    """The strips as figures, A above B, with the positions below and the scale."""
    high, side = highest(found), pool(length)
    drawn = [_figure(each, name, selection, length, seen) for name, each in found.items()]
    scale = Scale(selection.scale, high)
    marks = [html.Span(number(scale.value(place))) for place in (0.0, 0.25, 0.5, 0.75, 1.0)]
    bar = html.Div(
        [
            html.Span(className="bar seq"),
            html.Div(marks, className="marks"),
            html.Span(
                f"{selection.strip}: {MEANINGS[selection.strip]}; {selection.scale} scale, the same for A and B."
                + ("" if side == 1 else f" A column is {side} tokens, their largest value."),
                className="note",
            ),
        ],
        className="map-bar strip-bar",
    )
    return [*drawn, bar]


def _figure(cells: Floats, name: str, selection: Selection, length: int, seen: str) -> Any:
    layers, columns = cells.shape
    search = selection.search(side=name, sql="", q=None, layer=None, head=None)
    search += "" if "side=" in search else f"&side={name}"
    shape = f'{{"layers":{layers},"columns":{columns},"pool":{pool(length)},"length":{length}}}'
    label = (
        f"{NAMES[selection.strip]} in {name.upper()}: layers 0 to {layers - 1} down, "
        f"positions 0 to {length - 1} across"
    )
    images = [
        html.Div(
            className=f"picture only-{theme}",
            role="img",
            style={"backgroundImage": f'url("/view/tokens.png{search}&seen={seen}&theme={theme}")'},
            **{"aria-label": label},
        )
        for theme in ("light", "dark")
    ]
    ticks = [html.Span(str((length - 1) * place // 4)) for place in range(5)]
    return html.Figure(
        [
            html.Figcaption([html.B(name.upper()), html.Span(" layers down", className="note")]),
            html.Div(
                [
                    html.Div(
                        [html.Span(str(layer)) for layer in sorted({0, layers // 2, layers - 1})],
                        className="ticks strip-layers",
                    ),
                    html.Div(
                        [
                            *images,
                            html.Div(className="strip-row", hidden=True),
                            html.Div(className="strip-column", hidden=True),
                        ],
                        className="strip-frame",
                        tabIndex="0",
                        role="group",
                        style={"height": f"{max(layers * 6, 60)}px"},
                        **{
                            "data-shape": shape,
                            "data-cells": f"/view/tokens{search}&seen={seen}",
                            "data-name": name.upper(),
                            "aria-label": f"{label}; arrow keys move the layer and the token",
                        },
                    ),
                    html.Div(ticks, className="ticks strip-positions"),
                ],
                className="strip-plot",
            ),
        ],
        className="strip",
    )
