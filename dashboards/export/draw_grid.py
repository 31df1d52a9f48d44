"""The layer × head grid as SVG, from the same plain data that the pages' grid is drawn from."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from sparselens.dashboards.export.sheet import Bar, colours, paper
from sparselens.dashboards.export.svg import element, group, text
from sparselens.dashboards.verdict import number

LEFT, TOP = 46.0, 34.0
WIDE, HIGH, GAP, BETWEEN = 26.0, 14.0, 1.0, 4.0
"""A cell and the space beside it; `BETWEEN` groups of heads that share a key-value head."""


def grid_drawing(figure: dict[str, Any], theme: str) -> tuple[Markup, tuple[float, float]]:
    """The grid with its axes, and its width and height. `figure` is what `grid_figure` returns."""
    layers, heads, grouped = figure["layers"], figure["heads"], figure["group"]
    places = [LEFT + head * (WIDE + GAP) + _gaps(head, grouped) * BETWEEN for head in range(heads)]
    width = (places[-1] if places else LEFT) + WIDE
    height = TOP + layers * (HIGH + GAP)
    ink = paper(theme)
    rows = [_row(figure, layer, places, theme) for layer in range(layers)]
    names = [text(x + WIDE / 2, TOP - 6, str(head)) for head, x in enumerate(places)]
    middle = TOP + layers * (HIGH + GAP) / 2
    axes = [
        text((LEFT + width) / 2, 10, "head" + (_shared(grouped) if grouped > 1 else "")),
        text(12, middle, "layer", transform=f"rotate(-90 12 {middle:g})"),
    ]
    above = group(*names, *axes, font_size=10.5, fill=ink.faint, text_anchor="middle")
    return group(above, *rows), (width, height)


def grid_bar(figure: dict[str, Any]) -> Bar:
    """The colour bar of a grid: its ends, and 0 in the middle of a diverging one."""
    low, high = number(figure["low"]), number(figure["high"])
    middle = ("0",) if figure["scale"] == "div" else ()
    return Bar(figure["scale"], (low, *middle, high), figure["metric"])


def _shared(grouped: int) -> str:
    return f" (each {grouped} share a key-value head)"


def _gaps(head: int, grouped: int) -> int:
    return head // grouped if grouped > 1 else 0


def _row(figure: dict[str, Any], layer: int, places: list[float], theme: str) -> Markup:
    ink, heads = paper(theme), figure["heads"]
    y = TOP + layer * (HIGH + GAP)
    name = text(LEFT - 6, HIGH - 3.5, str(layer), font_size=10.5, fill=ink.faint, text_anchor="end")
    cells = [
        _cell(figure, layer * heads + head, f"L{layer}H{head}", x, theme) for head, x in enumerate(places)
    ]
    return group(name, *cells, transform=f"translate(0,{y:g})")


def _cell(figure: dict[str, Any], at: int, name: str, x: float, theme: str) -> Markup:
    ink, level = paper(theme), figure["levels"][at]
    said = element("title", f"{name} · {figure['texts'][at]}")
    fill = "none" if level is None else colours(figure["scale"], theme)[level]
    drawn = [
        element(
            "rect", said, x=x, width=WIDE, height=HIGH, fill=fill, stroke=ink.line if level is None else None
        )
    ]
    if level is None or figure.get("unsure", {at: False})[at]:
        drawn.append(_hatching(x, ink.faint))
    for mark, colour in (("under", ink.faint), ("roles", ink.accent)):
        if mark in figure and figure[mark][at]:
            drawn.append(_ring(x, colour))
    return drawn[0] if len(drawn) == 1 else group(*drawn)


def _ring(x: float, colour: str) -> Markup:
    return element(
        "rect",
        x=x + 0.75,
        y=0.75,
        width=WIDE - 1.5,
        height=HIGH - 1.5,
        fill="none",
        stroke=colour,
        stroke_width=1.5,
    )


def _hatching(x: float, colour: str) -> Markup:
    strokes = "".join(f"M{x + at:g} {HIGH:g}l{HIGH:g} -{HIGH:g}" for at in range(0, int(WIDE - HIGH) + 1, 4))
    return element("path", d=strokes, stroke=colour, stroke_width=0.6, fill="none")
