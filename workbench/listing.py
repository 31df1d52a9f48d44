"""Print rows: a table on a terminal, plain columns where piped, a JSON list of objects where asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def show(rows: Sequence[Mapping[str, Any]], *, as_json: bool = False, empty: str = "nothing here") -> None:
    """Print `rows`, whose keys are the columns; `empty` is said (on stderr) where there are none."""
    if as_json:
        print(json.dumps([dict(row) for row in rows], indent=1, default=str))  # noqa: T201
        return
    if not rows:
        print(empty, file=sys.stderr)  # noqa: T201
        return
    columns = list(rows[0])
    lines = [[cell(row.get(column)) for column in columns] for row in rows]
    if sys.stdout.isatty():
        _draw(columns, lines)
        return
    widths = [max(map(len, column)) for column in zip(columns, *lines, strict=True)]
    for line in [columns, *lines]:
        padded = [text.ljust(width) for text, width in zip(line, widths, strict=True)]
        print("  ".join(padded).rstrip())  # noqa: T201


def cell(value: Any) -> str:
    """A value as a cell: numbers short, lists and objects as JSON, nothing for None, one line."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, default=str)
    return " ".join(str(value).split())


def written(parameters: Mapping[str, Any]) -> str:
    """Parameters as they stand in a call: `sink=4,window=128`, lists in brackets."""
    return ",".join(f"{name}={_plain(value)}" for name, value in parameters.items())


def _plain(value: Any) -> str:
    return f"[{','.join(map(_plain, value))}]" if isinstance(value, list | tuple) else str(value)


def _draw(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, header_style="bold", box=None, pad_edge=False)
    for line in lines:
        table.add_row(*(Text(text) for text in line))
    Console().print(table)
