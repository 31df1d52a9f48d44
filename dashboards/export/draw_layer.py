"""The maps of all heads of a layer, and the strips of layers and tokens, as SVG: the pages' own pictures with axes."""

from __future__ import annotations

from base64 import b64encode

import numpy as np
from markupsafe import Markup

from sparselens.dashboards.choice import Settled
from sparselens.dashboards.export.caption import pair_title, prompt_caption, runs_caption
from sparselens.dashboards.export.figure import Figure
from sparselens.dashboards.export.sheet import Bar, paper, sheet
from sparselens.dashboards.export.svg import element, group, text
from sparselens.dashboards.head.heatmap import LENGTH
from sparselens.dashboards.heads import multiple
from sparselens.dashboards.picture import Scale, png
from sparselens.dashboards.query import Source
from sparselens.dashboards.sinks import strip
from sparselens.dashboards.verdict import number

TILE, BETWEEN, ABOVE = 92.0, 6.0, 18.0
WIDE, LEFT, BELOW = 720.0, 34.0, 34.0


def layer_figure(source: Source, settled: Settled, theme: str = "light") -> Figure:
    """The pooled maps of the chosen head's layer, A above B, as on Heads."""
    selection = settled.selection
    found = multiple.layer_maps(source, selection)
    scale = Scale(selection.scale, multiple.highest(found))
    pool = multiple.pool_of(source, selection)
    heads = max(each.shape[0] for each in found.values())
    step = TILE + BETWEEN
    ink = paper(theme)
    drawn = [
        text(LEFT + head * step, 10, f"L{selection.layer}H{head}", font_size=10.5, fill=ink.ink)
        for head in range(heads)
    ]
    for row, (side, maps) in enumerate(found.items()):
        top = ABOVE + row * step
        drawn.append(
            text(LEFT - 8, top + 12, side.upper(), font_weight="bold", text_anchor="end", fill=ink.ink)
        )
        for head, cells in enumerate(maps):
            drawn.append(_picture(cells, scale, theme, LEFT + head * step, top, TILE, TILE))
    caption = " ".join(
        [
            multiple.multiples_note(found, selection, pool),
            runs_caption(source, selection),
            prompt_caption(source, selection),
        ]
    )
    rows = [
        {"side": side, "head": head, "query": int(q) * pool, "key": int(k) * pool, "mass": float(cells[q, k])}
        for side, maps in found.items()
        for head, cells in enumerate(maps)
        for q, k in np.argwhere(~np.isnan(cells))
    ]
    title = f"Layer {selection.layer}, attention maps: {pair_title(source, selection)}"
    size = (LEFT + heads * step, ABOVE + len(found) * step)
    body = group(*drawn, font_size=11)
    return Figure(title, caption, sheet(title, body, size, caption, theme=theme, bar=_bar(scale)), rows)


def strip_figure(source: Source, settled: Settled, theme: str = "light") -> Figure:
    """A number of every layer and token, A above B, as on Sinks (`strip` says which)."""
    selection = settled.selection
    found = strip.strips(source, selection)
    length = int(source.first(LENGTH, prompt=selection.prompt).get("n") or 0)
    scale, side = Scale(selection.scale, strip.highest(found)), strip.pool(length)
    layers = max(each.shape[0] for each in found.values())
    high = max(layers * 6.0, 60.0)
    body = [
        _strip(cells, name, scale, theme, (place * (high + BELOW), high), length)
        for place, (name, cells) in enumerate(found.items())
    ]
    named = strip.NAMES[selection.strip].capitalize()
    shared = "; the same scale for A and B" if len(found) > 1 else ""
    meant = f"{named}: {strip.MEANINGS[selection.strip]}{shared}."
    caption = " ".join(
        word
        for word in (
            meant,
            "" if side == 1 else f"A column is {side} tokens, their largest value.",
            runs_caption(source, selection),
            prompt_caption(source, selection),
        )
        if word
    )
    rows = [
        {
            "side": name,
            "layer": int(layer),
            "pos": int(column) * side,
            selection.strip: float(cells[layer, column]),
        }
        for name, cells in found.items()
        for layer, column in np.argwhere(~np.isnan(cells))
    ]
    title = f"{named}, by layer and token: {pair_title(source, selection)}"
    size = (LEFT + WIDE, len(found) * (high + BELOW))
    return Figure(
        title, caption, sheet(title, group(*body), size, caption, theme=theme, bar=_bar(scale)), rows
    )


def _strip(
    cells: strip.Floats, name: str, scale: Scale, theme: str, place: tuple[float, float], length: int
) -> Markup:
    """One strip with its layers down and positions across; `place` is its top and its height."""
    top, high = place
    layers, ink = cells.shape[0], paper(theme)
    marks = [text(0, top + 10, name.upper(), font_size=11.5, font_weight="bold", fill=ink.ink)]
    for layer in sorted({0, layers // 2, layers - 1}):
        middle = top + high * (layer + 0.5) / layers + 3.5
        marks.append(text(LEFT - 5, middle, str(layer), text_anchor="end"))
    for tick in range(5):
        anchor = "start" if tick == 0 else "end" if tick == 4 else "middle"
        said = str((length - 1) * tick // 4)
        marks.append(text(LEFT + WIDE * tick / 4, top + high + 13, said, text_anchor=anchor))
    picture = _picture(cells, scale, theme, LEFT, top, WIDE, high)
    return group(picture, *marks, font_size=10, fill=ink.faint)


def _picture(
    cells: strip.Floats, scale: Scale, theme: str, x: float, y: float, width: float, height: float
) -> Markup:
    """Cells as a picture of one pixel each, framed."""
    address = f"data:image/png;base64,{b64encode(png(cells, scale, theme)).decode()}"
    box = {"x": x, "y": y, "width": width, "height": height}
    image = element("image", href=address, preserveAspectRatio="none", image_rendering="pixelated", **box)
    return group(image, element("rect", fill="none", stroke=paper(theme).line, **box))


def _bar(scale: Scale) -> Bar:
    return Bar(
        "seq", tuple(number(scale.value(place), 3) for place in (0.0, 0.5, 1.0)), f"{scale.kind} scale"
    )
