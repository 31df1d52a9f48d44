"""One head for a notebook: its maps, and the prompt's text shaded by what a query reads; hovering chooses the query.

It is one HTML document inside a frame of its own that may run its own script and reach nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from sparselens.dashboards.choice import Settled
from sparselens.dashboards.export.draw import head_map
from sparselens.dashboards.export.draw_reads import head_reads, is_cut, listed, shades, with_query
from sparselens.dashboards.export.draw_text import plain, visible
from sparselens.dashboards.export.figure import Figure
from sparselens.dashboards.export.page_template import page, style
from sparselens.dashboards.export.token import broken
from sparselens.dashboards.head.edge import edges
from sparselens.dashboards.head.panel import TOKENS
from sparselens.dashboards.head.reads import reads
from sparselens.dashboards.query import Source, SourceError, records
from sparselens.dashboards.selection import Selection

LEFT_OUT = """
SELECT q_pos, round(max(unstored_mass) FILTER (run_id = $a)::DOUBLE, 3) AS a,
       round(max(unstored_mass) FILTER (run_id = $b)::DOUBLE, 3) AS b
FROM row_stats WHERE run_id IN ($a, $b) AND prompt_id = $prompt AND pattern = 'executed'
  AND layer = $layer AND head = $head GROUP BY q_pos ORDER BY q_pos
"""
LONGEST = 768
"""Tokens of a prompt whose keys are all put into the view; of longer ones it shows the chosen query alone."""


@dataclass(frozen=True)
class HeadView:
    """A head of A and B on one prompt. `reads` and `map` are the figures it is made of, to be saved on their own."""

    reads: Figure
    map: Figure | None
    source: Source = field(repr=False)
    settled: Settled = field(repr=False)
    theme: str = field(default="light", repr=False)

    @property
    def title(self) -> str:
        """What is shown, in one line."""
        return self.reads.title

    def df(self) -> Any:
        """Return the keys of the chosen query with their mass in A and B, as a data frame."""
        return self.reads.df()

    def save(self, path: str | Path, *, scale: float = 2.0) -> Path:
        """Write the view: `.html` with hovering; `.svg` and `.png` are the text of the chosen query."""
        file = Path(path)
        if file.suffix.lower() in {".html", ".htm"}:
            file.write_text(self.html, encoding="utf-8")
            return file
        return self.reads.save(file, scale=scale)

    @cached_property
    def html(self) -> str:
        """The view as a whole HTML document that loads nothing."""
        selection = with_query(self.source, self.settled.selection)
        tokens = self.source.records(TOKENS, prompt=selection.prompt)
        whole = len(tokens) <= LONGEST
        return page(
            "head_view.html.j2",
            "head_view.js",
            style(self.theme, "head_view.css"),
            reads=self.reads,
            map=self.map and Markup(self.map.svg),  # noqa: S704 - drawn by us, escaped
            tokens=_tokens([row["text"] for row in tokens], reads(self.source, selection), selection),
            data={
                "q": selection.q,
                "two": bool(selection.b),
                "rows": _rows(self.source, selection) if whole else {},
            },
            whole=whole,
        )

    def _repr_html_(self) -> str:
        high = 640 if self.map is None else 1080
        return (
            f'<iframe srcdoc="{escape(self.html)}" sandbox="allow-scripts" title="{escape(self.title)}" '
            f'style="width:100%;height:{high}px;border:1px solid #c9ced8;border-radius:6px"></iframe>'
        )

    def __str__(self) -> str:
        return str(self.reads)


def head_view(source: Source, settled: Settled, theme: str = "light") -> HeadView:
    """The view of the settled head. SourceError where the trace holds no keys and no map of it on this prompt."""
    try:
        drawn = head_map(source, settled, theme)
    except SourceError:
        drawn = None
    read = head_reads(source, settled, theme)
    if drawn is None and not read.rows:
        name = settled.selection.head_name
        raise SourceError(f"Neither keys nor a map of {name} are stored for this prompt.")
    return HeadView(read, drawn, source, settled, theme)


def _tokens(texts: list[str | None], read: dict[str, Any], selection: Selection) -> list[tuple[str, str]]:
    """`(classes, text)` of every token, shaded for the chosen query as the script shades for others."""
    _, levels = shades(read, "b" if selection.b else "a", selection)
    keys = {row["key"]: row for row in listed(read)}
    made = []
    for pos, text in enumerate(texts):
        step = levels.get(pos)
        words = [] if plain(step, "seq") else [f"s{step}"]
        words += ["cut"] * is_cut(keys.get(pos)) + ["query"] * (pos == selection.q)
        made.append((" ".join(words), visible(None) if text is None else broken(text)))
    return made


def _rows(source: Source, selection: Selection) -> dict[str, list[list[float | None]]]:
    """Of every query its stored keys as `[key, mass in A, mass in B, kept]`, first `[-1, left out of A, of B, 1]`."""
    at = {name: getattr(selection, name) for name in ("a", "prompt", "layer", "head")}
    found: dict[str, list[list[float | None]]] = {}
    for row in source.records(LEFT_OUT, b=selection.b or None, **at):
        found[str(row["q_pos"])] = [[-1, row["a"], row["b"], 1]]
    for row in records(edges(source, selection)):
        found.setdefault(str(row["q"]), [[-1, None, None, 1]]).append(
            [
                row["k"],
                _rounded(row["a"]),
                _rounded(row["b"]),
                0 if False in (row["kept_a"], row["kept_b"]) else 1,
            ]
        )
    return found


def _rounded(mass: float | None) -> float | None:
    return None if mass is None else round(mass, 3)
