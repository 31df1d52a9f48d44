"""Tokens of a text in HTML: their class, the classes of all three shades, what hovering says."""

from __future__ import annotations

from typing import Any

from sparselens.dashboards.export.draw_text import plain, visible
from sparselens.dashboards.verdict import number

SHADES = ("diff", "a", "b")


def token_class(text: Any, pos: int, shade: str) -> str:
    """The classes of a token beside `token`, shaded by `diff`, `a` or `b`, with a space before each."""
    drawn = text.drawn
    marked = any(span["start"] <= pos < span["stop"] for span in text.spans)
    words = [_step(drawn["levels"][shade][pos], shade)]
    words += ["marked"] * marked + ["special"] * drawn["special"][pos]
    return "".join(f" {word}" for word in words if word)


def token_levels(text: Any, pos: int) -> str:
    """The classes of every shade, in the order of `SHADES`, a space between them."""
    return " ".join(_step(text.drawn["levels"][shade][pos], shade) for shade in SHADES)


def token_said(text: Any, pos: int) -> str:
    """Position and losses of a token."""
    a, b, change = (text.drawn["values"][side][pos] for side in ("a", "b", "diff"))
    return f"{pos} · A {number(a)} · B {number(b)} · B − A {number(change)} nats"


def broken(said: str) -> str:
    """A token with its line breaks both seen and kept."""
    return visible(said).replace("↵", "↵\n") if "\n" in said else visible(said)


def _step(level: int | None, shade: str) -> str:
    scale = "div" if shade == "diff" else "seq"
    return "" if plain(level, scale) else f"{scale[0]}{level}"
