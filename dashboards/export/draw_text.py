"""The tokens of a prompt as SVG, each on a ground of its colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from sparselens.dashboards.colour import ink as reads_on
from sparselens.dashboards.export.sheet import colours, paper
from sparselens.dashboards.export.svg import MONO, columns, element, group, text

CHARACTER, LINE, SIZE = 7.25, 20.0, 12.0
ACROSS = 96
LONGEST = 60


@dataclass(frozen=True)
class Token:
    """One token: its text, its step 0…32 on the scale `seq` or `div`, what hovering says, how it is marked."""

    text: str
    level: int | None = None
    scale: str = "seq"
    said: str = ""
    framed: bool = False
    cut: bool = False


def visible(said: str | None) -> str:
    """A token with its line breaks and tabs to be seen."""
    return "▯" if said is None else said.replace("\r", "").replace("\t", "⇥").replace("\n", "↵") or "∅"


def plain(level: int | None, scale: str) -> bool:
    """Whether a step is drawn without a ground: none, no mass, or no change."""
    return level in {None, 0 if scale == "seq" else 16}


def text_drawing(tokens: Sequence[Token], theme: str) -> tuple[Markup, tuple[float, float]]:
    """The text in lines of `ACROSS` columns, broken where its own lines end; and its width and height."""
    drawn, at, line = [], 0, 0
    for token in tokens:
        said = visible(token.text)
        said = said if columns(said) <= LONGEST else said[: LONGEST // 2] + "…"
        wide = columns(said)
        if at + wide > ACROSS and at:
            at, line = 0, line + 1
        drawn.append(_token(token, said, at * CHARACTER, line * LINE, wide * CHARACTER, theme))
        at += wide
        if token.text and token.text.endswith("\n"):
            at, line = 0, line + 1
    kept = {"xml:space": "preserve"}
    body = group(*drawn, font_family=MONO, font_size=SIZE, fill=paper(theme).ink, **kept)
    return body, (ACROSS * CHARACTER, (line + 1) * LINE)


def _token(token: Token, said: str, x: float, y: float, width: float, theme: str) -> Markup:
    ink = paper(theme)
    parts: list[Markup] = [element("title", token.said)] if token.said else []
    ground = None if plain(token.level, token.scale) else colours(token.scale, theme)[token.level or 0]
    if ground or token.framed:
        parts.append(
            element(
                "rect",
                x=x,
                y=y + 2,
                width=width,
                height=LINE - 4,
                fill=ground or "none",
                stroke=ink.accent if token.framed else None,
                stroke_width=1.5 if token.framed else None,
            )
        )
    over = _ink(ground) if ground else None
    parts.append(
        text(
            x,
            y + 14,
            said,
            fill=over,
            textLength=width if len(said) > 1 and said.isascii() else None,
            lengthAdjust="spacingAndGlyphs" if len(said) > 1 and said.isascii() else None,
        )
    )
    if token.cut:
        parts.append(element("path", d=f"M{x:g} {y + 10:g}h{width:g}", stroke=ink.danger, stroke_width=1.5))
    return parts[0] if len(parts) == 1 else group(*parts)


def _ink(ground: str) -> str:
    red, green, blue = bytes.fromhex(ground[1:])
    return reads_on((red, green, blue))
