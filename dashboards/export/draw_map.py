"""The maps A, B and B − A of one head as SVG: the pages' own pictures with axes, ticks and colour bars."""

from __future__ import annotations

from base64 import b64encode

from markupsafe import Markup

from sparselens.dashboards.export.sheet import Bar, colour_bar, paper
from sparselens.dashboards.export.svg import element, group, text
from sparselens.dashboards.head.heatmap import BAR, TICKS, Drawn
from sparselens.dashboards.picture import png
from sparselens.dashboards.verdict import number

SIDE = 256.0
LEFT, TOP, BELOW, BETWEEN = 44.0, 20.0, 80.0, 22.0
NAMES = {"a": "A", "b": "B", "diff": "B − A"}


def maps_drawing(
    drawn: dict[str, Drawn], sinks: dict[str, float | None], theme: str
) -> tuple[Markup, tuple[float, float]]:
    """The maps beside each other, and their width and height; `sinks` is the mean mass on key 0 by side."""
    step = LEFT + SIDE + BETWEEN
    maps = [
        group(_map(each, side, sinks.get(side), theme), transform=f"translate({place * step:g},0)")
        for place, (side, each) in enumerate(drawn.items())
    ]
    return group(*maps), (len(maps) * step - BETWEEN + 4, TOP + SIDE + BELOW)


def address(each: Drawn, theme: str) -> str:
    """A map's picture as a data address, one pixel a cell."""
    return f"data:image/png;base64,{b64encode(png(each.values, each.scale, theme)).decode()}"


def map_bar(each: Drawn) -> Bar:
    """The colour bar of a map, with the value at its quarters."""
    marks = tuple(number(each.scale.value(place), 3) for place in BAR)
    return Bar("div" if each.scale.diverging else "seq", marks)


def _map(each: Drawn, side: str, sink: float | None, theme: str) -> Markup:
    ink = paper(theme)
    said = NAMES[side] + ("" if sink is None else f" · sink mass (key 0) {number(sink)}")
    picture = element(
        "image",
        x=LEFT,
        y=TOP,
        width=SIDE,
        height=SIDE,
        href=address(each, theme),
        preserveAspectRatio="none",
        image_rendering="pixelated",
    )
    frame = element("rect", x=LEFT, y=TOP, width=SIDE, height=SIDE, fill="none", stroke=ink.line)
    middle = TOP + SIDE / 2
    words = group(
        text(LEFT, TOP - 7, said, font_size=11.5, font_weight="bold", fill=ink.ink),
        text(LEFT + SIDE / 2, TOP + SIDE + 28, "key (source)", text_anchor="middle"),
        text(10, middle, "query (destination)", text_anchor="middle", transform=f"rotate(-90 10 {middle:g})"),
        *_ticks(each),
        font_size=10,
        fill=ink.faint,
    )
    bar = colour_bar(map_bar(each), theme, LEFT, TOP + SIDE + 42, SIDE)
    scale = text(
        LEFT + SIDE,
        TOP + SIDE + 28,
        f"{each.scale.kind} scale",
        font_size=10,
        fill=ink.faint,
        text_anchor="end",
    )
    return group(picture, frame, words, bar, scale)


def _ticks(each: Drawn) -> list[Markup]:
    """Positions along both axes, at the middle of the place where they lie."""
    made = []
    for place in range(TICKS):
        share = place / (TICKS - 1)
        for window, across in ((each.cells.keys, True), (each.cells.queries, False)):
            said = str(window.start + round((window.stop - 1 - window.start) * share))
            if across:
                at = LEFT + SIDE * share
                anchor = "start" if place == 0 else "end" if place == TICKS - 1 else "middle"
                made.append(text(at, TOP + SIDE + 13, said, text_anchor=anchor))
            else:
                made.append(text(LEFT - 4, TOP + 8 + (SIDE - 8) * share, said, text_anchor="end"))
    return made
