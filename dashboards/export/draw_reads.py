"""What one query of a head reads, or who reads a key, as the text of the prompt shaded by it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from sparselens.dashboards.choice import Settled
from sparselens.dashboards.colour import LEVELS
from sparselens.dashboards.export.caption import pair_title, prompt_caption, runs_caption
from sparselens.dashboards.export.draw_text import Token, text_drawing
from sparselens.dashboards.export.figure import Figure
from sparselens.dashboards.export.sheet import Bar, sheet
from sparselens.dashboards.head.heatmap import BAR
from sparselens.dashboards.head.panel import FIRST_QUERY, TOKENS
from sparselens.dashboards.head.reads import reads
from sparselens.dashboards.picture import Scale
from sparselens.dashboards.query import Source
from sparselens.dashboards.selection import Selection
from sparselens.dashboards.verdict import number

WORTH = 0.01
"""Mass in A or B from which a dropped key is struck through, as on the page."""


def with_query(source: Source, selection: Selection) -> Selection:
    """The selection with a query: the chosen one, else the row that predicts the answer, else the last."""
    if selection.q is not None:
        return selection
    return replace(selection, q=source.first(FIRST_QUERY, prompt=selection.prompt).get("q") or 0)


def head_reads(source: Source, settled: Settled, theme: str = "light") -> Figure:
    """The text shaded by what the query reads (`way`: who reads it) in A, in B, or B − A (`side`), as on Head."""
    selection = with_query(source, settled.selection)
    found = reads(source, selection)
    side = selection.side if selection.b else "a"
    scale, levels = shades(found, side, selection)
    rows = {row["key"]: row for row in listed(found)}
    tokens = [
        Token(
            "▯" if row["text"] is None else row["text"],
            levels.get(row["pos"]),
            "div" if scale.diverging else "seq",
            _said(row["pos"], rows.get(row["pos"])),
            framed=row["pos"] == selection.q,
            cut=is_cut(rows.get(row["pos"])),
        )
        for row in source.records(TOKENS, prompt=selection.prompt)
    ]
    body, size = text_drawing(tokens, theme)
    what = f"what query {selection.q} reads" if selection.way == "reads" else f"who reads key {selection.q}"
    title = f"{selection.head_name}, {what}: {pair_title(source, selection)}"
    shade = {"a": "under A" if selection.b else "", "b": "under B", "diff": "B − A"}[side]
    caption = " ".join(
        [
            f"Ground: mass {shade}".rstrip()
            + f"; framed: the {'query' if selection.way == 'reads' else 'key'}; "
            f"struck through: dropped by the policy, {WORTH:g} or more in A or B.",
            "Key 0 is not shaded." if selection.hide == "1" else "",
            found["sentence"],
            runs_caption(source, selection),
            prompt_caption(source, selection),
        ]
    )
    caption = " ".join(caption.split())
    bar = Bar(
        "div" if scale.diverging else "seq",
        tuple(number(scale.value(place)) for place in (BAR[0], BAR[2], BAR[4])),
        f"mass, {scale.kind} scale",
    )
    drawn = sheet(title, body, size, caption, theme=theme, bar=bar)
    return Figure(title, caption, drawn, list(rows.values()))


def listed(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The lists of `reads` as a row a key."""
    names = ("a", "b", "kept_a", "kept_b")
    return [
        {"key": key, **{name: found[name][place] for name in names}}
        for place, key in enumerate(found["keys"])
    ]


def is_cut(row: dict[str, Any] | None) -> bool:
    """Whether a run dropped this key, and it was worth something in one of them."""
    if row is None or (row["kept_a"] is not False and row["kept_b"] is not False):
        return False
    return max(row["a"] or 0.0, row["b"] or 0.0) >= WORTH


def shades(found: dict[str, Any], side: str, selection: Selection) -> tuple[Scale, dict[int, int]]:
    """The scale that A and B share (B − A has its own), and the step of every listed key that is shaded."""
    hidden = {0} if selection.hide == "1" else set()
    rows = [row for row in listed(found) if row["key"] not in hidden]
    change = side == "diff"
    masses = {
        row["key"]: (row["b"] or 0.0) - (row["a"] or 0.0) if change else row[side] or 0.0 for row in rows
    }
    both = masses.values() if change else [row[name] or 0.0 for row in rows for name in ("a", "b")]
    scale = Scale(selection.scale, max((abs(mass) for mass in both), default=0.0) or 1.0, diverging=change)
    places = scale.place(np.array(list(masses.values()), dtype=np.float64))
    return scale, {key: round(LEVELS * place) for key, place in zip(masses, places.tolist(), strict=True)}


def _said(pos: int, row: dict[str, Any] | None) -> str:
    return str(pos) if row is None else f"{pos}: A {number(row['a'])}, B {number(row['b'])}"
