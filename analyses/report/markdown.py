"""A report as Markdown that GitHub renders: headings, tables, code; no HTML."""

from __future__ import annotations

import re

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

_SPECIAL = re.compile(r"[\\`*{}<>#|~&$@]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|!(?=\[)|\](?=[\[(:])")
_PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]")


def markdown(page: Page) -> str:
    """Return a page as GitHub-flavoured Markdown."""
    lines = [f"# {written(page.title)}", ""]
    lines += [line for words in page.lead for line in (f"**In short:** {written(words)}", "")]
    for section in page.sections:
        lines += _section(section)
    return "\n".join(lines).rstrip() + "\n"


def written(words: Words) -> str:
    """Return words with what Markdown would read as markup escaped; text of the trace as code."""
    return "".join(
        _escaped(visible(piece)) if isinstance(piece, str) else _code(visible(piece.text))
        for piece in pieces(words)
    )


def _escaped(text: str) -> str:
    return _SPECIAL.sub(lambda found: f"&#{ord(found[0])};" if found[0] == "|" else f"\\{found[0]}", text)


def _code(text: str) -> str:
    """Return text as a code span; what cannot stand in one within a table is spelled in entities."""
    if not text:
        return ""
    if text.isspace() or set(text) & set("`|\\"):
        return _PUNCTUATION.sub(lambda found: f"&#{ord(found[0])};", text)
    return f"`{text}`"


def _section(section: Section) -> list[str]:
    lines = [f"## {written(section.title)}", ""]
    for block in section.blocks:
        lines += _block(block)
    return lines


def _block(block: Block) -> list[str]:
    if isinstance(block, Paragraph):
        return [written(block.words), ""]
    if isinstance(block, Heading):
        return [f"### {written(block.words)}", ""]
    if isinstance(block, Missing):
        commands = [visible(command) for command in block.commands]
        fence = "`" * max(
            3, 1 + max((len(run) for each in commands for run in re.findall("`+", each)), default=0)
        )
        return [f"{written(block.what)}. {measures(block)}", "", f"{fence}bash", *commands, fence, ""]
    if isinstance(block, Grids):
        return []
    return [f"*{written(block.caption)}*", "", *_table(block), ""]


def _table(table: Table) -> list[str]:
    head, rule = _row(table.columns), "|" + " --- |" * len(table.columns)
    return [head, rule, *[_row(row) for row in table.rows]]


def _row(cells: object) -> str:
    """Return a row; every cell is one line without a bare pipe."""
    said = [written(cell.words if isinstance(cell, Cell) else cell).strip() for cell in cells]  # type: ignore[attr-defined]
    return f"| {' | '.join(said)} |"
