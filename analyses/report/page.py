"""What a report is made of: words, tables, grids of heads, commands. It is drawn as text, Markdown or HTML.

Nothing here knows a trace, and nothing that draws knows one: every number is the same in all three forms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from sparselens.analyses.interval import Interval


@dataclass(frozen=True)
class Verbatim:
    """Text of a trace, or a command: shown as it is, never read as markup."""

    text: str


Words: TypeAlias = str | Verbatim | tuple[str | Verbatim, ...]


@dataclass(frozen=True)
class Cell:
    """Words of a table; `drawn` is drawn beside them as a bar, where the form can draw."""

    words: Words
    drawn: Interval | None = None


@dataclass(frozen=True)
class Paragraph:
    """One sentence or more; `quiet` for what is read last."""

    words: Words
    quiet: bool = False


@dataclass(frozen=True)
class Heading:
    """A heading within a section: the part about one run."""

    words: Words


@dataclass(frozen=True)
class Table:
    """Rows under `columns`; the first cell of a row names it.

    `marks`: where bars have a line. `scale`: bars of which cells share one, those of a column, a row or the table.
    """

    caption: str
    columns: Sequence[Words]
    rows: Sequence[Sequence[Words | Cell]]
    marks: tuple[float, ...] = (0.0,)
    scale: Literal["column", "row", "table"] = "column"


@dataclass(frozen=True)
class Grid:
    """One number for each head, layers down; forms that cannot draw leave it out."""

    title: Words
    unit: str
    n_layers: int
    n_heads: int
    values: Mapping[tuple[int, int], Interval]


@dataclass(frozen=True)
class Grids:
    """Grids that share a scale from 0 to `most`, side by side."""

    caption: str
    grids: Sequence[Grid]
    most: float


@dataclass(frozen=True)
class Missing:
    """What the trace does not say, and the commands that would measure it."""

    what: str
    commands: Sequence[str]


Block: TypeAlias = Paragraph | Heading | Table | Grids | Missing


@dataclass(frozen=True)
class Section:
    """A part of the report with a heading; `key` is its anchor."""

    key: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """The whole report: title, one sentence a run, sections."""

    title: Words
    lead: Sequence[Words]
    sections: Sequence[Section] = field(default_factory=tuple)


def filled(table: Table, empty: str) -> Table:
    """Return a table without the columns in which every cell is `empty`."""

    def said(cell: Words | Cell) -> Words:
        return cell.words if isinstance(cell, Cell) else cell

    keep = [at for at in range(len(table.columns)) if any(said(row[at]) != empty for row in table.rows)]
    rows = [[row[at] for at in keep] for row in table.rows]
    return replace(table, columns=[table.columns[at] for at in keep], rows=rows)


def pieces(words: Words) -> tuple[str | Verbatim, ...]:
    """Return words as a tuple of plain and verbatim pieces."""
    return words if isinstance(words, tuple) else (words,)


def joined(parts: Sequence[Words], between: str) -> Words:
    """Return words with `between` them."""
    found: list[str | Verbatim] = []
    for number, part in enumerate(parts):
        found += [between] if number else []
        found += pieces(part)
    return tuple(found)


def visible(text: str) -> str:
    """Return text without a character that moves the cursor, hides or turns what follows; those are spelled out."""
    known = {"\n": "↵", "\r": "␍", "\t": "⇥"}
    return "".join(
        known.get(char) or (char if char.isprintable() else f"\\u{ord(char):04x}") for char in text
    )


def measures(missing: Missing) -> str:
    """Return what stands before the commands of something that is missing."""
    return "This measures it:" if len(missing.commands) == 1 else "These measure it:"
