"""The sheet that figures are drawn on: paper, title, the drawing, a colour bar, the caption."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from markupsafe import Markup

from sparselens.dashboards.colour import palette
from sparselens.dashboards.export.svg import document, element, group, lines, text

MARGIN = 16.0
BAR = 160.0
STEPS = 32
TITLE, CAPTION = 14.0, 11.0
CHARACTER = 0.58
"""Mean width of a character of the sans-serif fonts, in font sizes."""


@dataclass(frozen=True)
class Paper:
    """Colours of a theme beside those of the data."""

    surface: str
    ink: str
    faint: str
    line: str
    accent: str
    danger: str


PAPER = {
    "light": Paper("#ffffff", "#1b1f27", "#555d6b", "#c9ced8", "#5547d6", "#b3261e"),
    "dark": Paper("#16191f", "#e8eaee", "#9aa2b1", "#3a4150", "#a79dff", "#ff8a80"),
}


@dataclass(frozen=True)
class Bar:
    """A colour bar: the scale `seq` or `div`, the words under it from its left to its right end, what it is of."""

    kind: str
    marks: tuple[str, ...]
    label: str = ""


def paper(theme: str) -> Paper:
    """The colours of a theme; ValueError names the themes."""
    if theme not in PAPER:
        raise ValueError(f"no theme {theme!r}; themes are {', '.join(PAPER)}")
    return PAPER[theme]


@cache
def colours(kind: str, theme: str) -> list[str]:
    """The `STEPS + 1` colours of a scale, as the pages have them."""
    return [
        f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in palette(kind, theme, STEPS + 1).tolist()
    ]


def colour_bar(bar: Bar, theme: str, x: float, y: float, width: float = BAR) -> Markup:
    """The bar at a place, 26 units high: its colours, its marks under them."""
    step = width / (STEPS + 1)
    ink = paper(theme)
    cells = [
        element("rect", x=x + place * step, y=y, width=step + 0.3, height=9, fill=colour)
        for place, colour in enumerate(colours(bar.kind, theme))
    ]
    frame = element("rect", x=x, y=y, width=width, height=9, fill="none", stroke=ink.line)
    last = max(len(bar.marks) - 1, 1)
    marks = [
        text(
            x + width * place / last,
            y + 21,
            mark,
            text_anchor="start" if place == 0 else "end" if place == last else "middle",
        )
        for place, mark in enumerate(bar.marks)
    ]
    label = [text(x + width + 8, y + 8.5, bar.label)] if bar.label else []
    return group(*cells, frame, *marks, *label, font_size=10, fill=ink.faint)


def sheet(
    title: str,
    body: Markup,
    size: tuple[float, float],
    caption: str,
    *,
    theme: str,
    bar: Bar | None = None,
    least: float = 380.0,
) -> str:
    """The whole figure; `body` is drawn in a box of `size` (width, height) whose corner is (0, 0)."""
    ink = paper(theme)
    width = max(size[0], least)
    named = lines(title, int(width / (TITLE * CHARACTER * 1.12)))
    told = lines(caption, int(width / (CAPTION * CHARACTER)))
    y = MARGIN + TITLE
    parts = [element("rect", width="100%", height="100%", fill=ink.surface)]
    for line in named:
        parts.append(text(MARGIN, y, line, font_size=TITLE, font_weight="bold", fill=ink.ink))
        y += TITLE * 1.3
    y += 2
    parts.append(group(body, transform=f"translate({MARGIN:g},{y:g})"))
    y += size[1] + 12
    if bar is not None:
        parts.append(colour_bar(bar, theme, MARGIN, y))
        y += 34
    for line in told:
        y += CAPTION * 1.35
        parts.append(text(MARGIN, y, line, font_size=CAPTION, fill=ink.faint))
    return document(width + 2 * MARGIN, round(y + MARGIN), title, caption, *parts)
