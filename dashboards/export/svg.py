"""SVG as text. Whatever comes from a trace is escaped here, and stripped of what XML cannot hold."""

from __future__ import annotations

import re
import textwrap
import unicodedata
from importlib.util import find_spec
from pathlib import Path

import resvg_py
from markupsafe import Markup, escape

FORBIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff\u202a-\u202e\u2066-\u2069]"
)
"""Control characters, halves of surrogate pairs, and what turns the direction of the text around it."""
SANS = "Verdana, DejaVu Sans, Helvetica, Arial, sans-serif"
MONO = "DejaVu Sans Mono, Menlo, Consolas, Liberation Mono, monospace"


def clean(text: str) -> str:
    """Text in which every character that XML or its reader could stumble over is `�`."""
    return FORBIDDEN.sub("�", text)


def element(name: str, *inside: str, **attributes: str | float | None) -> Markup:
    """One element: plain texts and all values are escaped, `Markup` is put in as it is.

    An underscore in an attribute's name is a dash, one at its end is dropped; None leaves the attribute out.
    """
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(clean(_value(value)))}"'
        for key, value in attributes.items()
        if value is not None
    )
    body = "".join(each if isinstance(each, Markup) else escape(clean(each)) for each in inside)
    return Markup(f"<{name}{said}>{body}</{name}>" if body else f"<{name}{said}/>")  # noqa: S704 - escaped above


def group(*inside: str, **attributes: str | float | None) -> Markup:
    """A `g` element."""
    return element("g", *inside, **attributes)


def text(x: float, y: float, said: str, **attributes: str | float | None) -> Markup:
    """A `text` element whose spaces are kept."""
    return element("text", said, x=x, y=y, **attributes)


def lines(said: str, characters: int) -> list[str]:
    """A text broken into lines of at most so many characters."""
    return [line for part in said.split("\n") for line in textwrap.wrap(part, max(characters, 8)) or [""]]


def columns(said: str) -> int:
    """How many columns of a monospaced font a text takes: two for wide characters."""
    return sum(
        0 if unicodedata.combining(each) else 2 if unicodedata.east_asian_width(each) in "WF" else 1
        for each in said
    )


def document(width: float, height: float, title: str, description: str, *inside: str) -> str:
    """A whole SVG file: title and description are in it for readers that do not see."""
    return str(
        element(
            "svg",
            element("title", title),
            element("desc", description),
            *inside,
            xmlns="http://www.w3.org/2000/svg",
            width=width,
            height=height,
            viewBox=f"0 0 {_value(width)} {_value(height)}",
            font_family=SANS,
            role="img",
        )
    )


def png(svg: str, scale: float) -> bytes:
    """The picture of an SVG as PNG, `scale` pixels a unit.

    Whole cells stay whole: what browsers call `pixelated`, this renderer calls `optimizeSpeed`. System fonts are used
    where they are; matplotlib's DejaVu fonts are always there.
    Raises ValueError for a scale that is not above 0 and at most 8, or a picture that cannot be drawn.
    """
    if not 0 < scale <= 8:
        raise ValueError(f"a picture has more than 0 and at most 8 pixels a unit, not {scale:g}")
    drawn = resvg_py.svg_to_bytes(
        svg_string=svg.replace('image-rendering="pixelated"', 'image-rendering="optimizeSpeed"'),
        zoom=scale,
        font_files=_fonts(),
        sans_serif_family="DejaVu Sans",
        monospace_family="DejaVu Sans Mono",
        font_family="DejaVu Sans",
    )
    return bytes(drawn)


def _fonts() -> list[str]:
    found = find_spec("matplotlib")
    if found is None or not found.submodule_search_locations:
        raise ValueError("PNG needs matplotlib's fonts; SVG does not: write a .svg, or install matplotlib")
    folder = Path(found.submodule_search_locations[0]) / "mpl-data" / "fonts" / "ttf"
    return [str(folder / f"{name}.ttf") for name in ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono")]


def _value(value: str | float | None) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return str(value)
