"""Small multiples: the pooled maps of all heads of one layer, A and B, on one scale, as one image a side."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from dash import html
from numpy.typing import NDArray

from sparselens.dashboards.picture import Scale, png
from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.selection import Selection
from sparselens.dashboards.verdict import number
from sparselens.storage import pooled

Floats: TypeAlias = NDArray[np.float64]
LAYER_MAPS = """
SELECT head, pool, size, data FROM pooled_maps
WHERE run_id = $run AND prompt_id = $prompt AND pattern = 'executed' AND layer = $layer ORDER BY head
"""
FIELDS = ("a", "b", "prompt", "layer", "hide", "scale")


def layer_maps(source: Source, selection: Selection) -> dict[str, Floats]:
    """`[heads, rows, columns]` of pooled mass by side `a` and `b`; NaN after the query, and where a head has no map.

    Raises SourceError when no run has any.
    """
    name = "layer " + " ".join(str(getattr(selection, field)) for field in FIELDS)
    return source.kept(name, lambda: _layer_maps(source, selection))


def _layer_maps(source: Source, selection: Selection) -> dict[str, Floats]:
    found: dict[str, Floats] = {}
    for side in ("a", "b"):
        run = getattr(selection, side)
        rows = (
            source.records(LAYER_MAPS, run=run, prompt=selection.prompt, layer=selection.layer) if run else []
        )
        if not rows:
            continue
        size = max(int(row["size"]) for row in rows)
        cells = np.full((max(row["head"] for row in rows) + 1, size, size), np.nan)
        for row in rows:
            cells[row["head"]] = pooled.decode(bytes(row["data"]), int(row["size"]))
        cells[:, np.arange(size)[None, :] > np.arange(size)[:, None]] = np.nan
        if selection.hide == "1":
            cells[:, :, 0] = np.nan
        found[side] = cells
    if not found:
        raise SourceError("No pooled maps of this layer are stored for this prompt.")
    return found


def pool_of(source: Source, selection: Selection) -> int:
    """How many queries and keys a cell of the layer's maps holds."""
    for run in (selection.a, selection.b):
        row = source.first(LAYER_MAPS, run=run, prompt=selection.prompt, layer=selection.layer) if run else {}
        if row:
            return int(row["pool"])
    raise SourceError("No pooled maps of this layer are stored for this prompt.")


def highest(found: dict[str, Floats]) -> float:
    """The top of the one scale that all maps of the layer share."""
    return max(float(np.nanmax(np.nan_to_num(each), initial=0.0)) for each in found.values())


def layer_png(source: Source, selection: Selection, theme: str) -> bytes:
    """The maps of a side beside each other, one pixel a cell; SourceError when it has none."""
    found = layer_maps(source, selection)
    if selection.side not in found:
        raise SourceError(f"No pooled maps of side {selection.side} are stored for this prompt.")
    heads, rows, columns = found[selection.side].shape
    strip = found[selection.side].transpose(1, 0, 2).reshape(rows, heads * columns)
    return png(strip, Scale(selection.scale, highest(found)), theme)


def multiples_figure(
    found: dict[str, Floats], selection: Selection, texts: dict[int, str], group: int, seen: str
) -> Any:
    """A figure a head: its name and score, its map in A above that in B. `texts` are the scores by head."""
    heads = max(each.shape[0] for each in found.values())
    return html.Div(
        [
            html.Figure(
                [
                    html.Button(
                        [
                            html.Span(f"L{selection.layer}H{head}", className="mono"),
                            html.Small(texts.get(head, ""), className="note"),
                            *[_tile(each, side, head, selection, seen) for side, each in found.items()],
                        ],
                        type="button",
                        className="tile-head",
                        title=f"Select L{selection.layer}H{head}",
                        **{
                            "data-go": f'{{"layer":{selection.layer},"head":{head}}}',
                            "data-cell": f"L{selection.layer}H{head}",
                        },
                    ),
                ],
                className="multiple" + (" opens" if group > 1 and head and head % group == 0 else ""),
            )
            for head in range(heads)
        ],
        className="multiples",
    )


def _tile(each: Floats, side: str, head: int, selection: Selection, seen: str) -> Any:
    """One head's part of the side's image, for both themes."""
    heads = each.shape[0]
    if head >= heads or np.isnan(each[head]).all():
        return html.Span("no map", className="tile-none note")
    search = selection.search(side=side, sql="", q=None, head=None, score="", whose="", x="", y="", box=None)
    search += "" if "side=" in search else f"&side={side}"
    across = 0.0 if heads == 1 else 100 * head / (heads - 1)
    return html.Span(
        [
            html.Span(side.upper(), className="tile-side"),
            *[
                html.Span(
                    className=f"tile only-{theme}",
                    role="img",
                    style={
                        "backgroundImage": f'url("/view/layer.png{search}&seen={seen}&theme={theme}")',
                        "backgroundSize": f"{100 * heads}% 100%",
                        "backgroundPosition": f"{across:.4f}% 0",
                    },
                    **{"aria-label": f"map of head {head} in {side.upper()}"},
                )
                for theme in ("light", "dark")
            ],
        ],
        className="tile-frame",
    )


def multiples_note(found: dict[str, Floats], selection: Selection, pool: int) -> str:
    """How to read the small maps."""
    hidden = " Key 0 is hidden." if selection.hide == "1" else ""
    return (
        f"Queries down, keys across, {pool} × {pool} tokens a cell: mean over queries of the summed mass on keys; "
        f"{selection.scale} scale from 0 to {number(highest(found))} for all maps here.{hidden}"
    )
