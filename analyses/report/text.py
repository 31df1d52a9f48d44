"""A report as plain text: what the command prints."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

from sparselens.analyses.report.page import (
    Block,
    Cell,
    Grids,
    Heading,
    Missing,
    Page,
    Paragraph,
    Section,
    Table,
    Words,
    measures,
    pieces,
    visible,
)

WIDTH = 100
CELL = 40
"""Longer cells go on in the next line."""
_BREAK = re.compile(r"(?<=[,;()=])(?=\S)|(?<=\s)")


def text(page: Page) -> str:
    """Return a page as lines of text; commands stand alone on theirs."""
    title = plain(page.title)
    lines = [title, "=" * min(len(title), WIDTH), "", *[_wrapped(each) for each in page.lead]]
    for section in page.sections:
        lines += ["", *_section(section)]
    return "\n".join(lines)


def plain(words: Words) -> str:
    """Return words as text in which nothing moves the cursor."""
    return visible("".join(piece if isinstance(piece, str) else piece.text for piece in pieces(words)))


def _section(section: Section) -> list[str]:
    lines = [section.title, "-" * len(section.title)]
    for block in section.blocks:
        lines += _block(block)
    return lines


def _block(block: Block) -> list[str]:
    if isinstance(block, Paragraph):
        return [_wrapped(block.words), ""]
    if isinstance(block, Heading):
        return [f"== {plain(block.words)}", ""]
    if isinstance(block, Missing):
        commands = [f"  {visible(command)}" for command in block.commands]
        return [_wrapped(f"{block.what}. {measures(block)}"), *commands, ""]
    if isinstance(block, Grids):
        return []
    return [_wrapped(f"{block.caption}:"), *_table(block), ""]


def _wrapped(words: Words) -> str:
    return textwrap.fill(plain(words), WIDTH, break_long_words=False, break_on_hyphens=False)


def _table(table: Table) -> list[str]:
    """Return a table as columns of text, long cells over several lines."""
    rows = [[_cell(each) for each in row] for row in (table.columns, *table.rows)]
    widths = [max(len(line) for row in rows for line in row[at]) for at in range(len(table.columns))]
    lines: list[str] = []
    for row in rows:
        for number in range(max(map(len, row))):
            cells = [cell[number] if number < len(cell) else "" for cell in row]
            padded = [each.ljust(width) for each, width in zip(cells, widths, strict=True)]
            lines.append(f"  {'  '.join(padded)}".rstrip())
        if row is rows[0]:
            lines.append(f"  {'  '.join('-' * width for width in widths)}")
    return lines


def _cell(cell: Words | Cell) -> Sequence[str]:
    """Return a cell as lines of at most `CELL` characters, broken at spaces and after punctuation."""
    said = plain(cell.words if isinstance(cell, Cell) else cell).rstrip()
    lines = [""]
    for part in _BREAK.split(said):
        if lines[-1].strip() and len(lines[-1]) + len(part.rstrip()) > CELL:
            lines.append("")
        lines[-1] += part
    return [line.rstrip() for line in lines]
