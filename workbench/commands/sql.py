"""`sparselens sql`: one question to a trace, as a table, CSV, JSON or Parquet."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    """How an answer is written."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


def sql(
    query: Annotated[str, typer.Argument(help="One SELECT or EXPLAIN; - reads it from stdin.")],
    trace: Annotated[Path, typer.Option(help="The trace folder, or a file made by pack.")],
    form: Annotated[Format, typer.Option("--format", help="JSON is a list of objects.")] = Format.TABLE,
    output: Annotated[Path | None, typer.Option(help="Write into this file instead.")] = None,
    max_rows: Annotated[int, typer.Option(min=1, help="Stop after so many rows, and say so.")] = 10_000,
    timeout: Annotated[float, typer.Option(min=0.1, help="Stop after so many seconds.")] = 30.0,
) -> None:
    """Ask a trace in SQL: read-only, one statement, with time, memory and row caps."""
    from sparselens.storage.reader import connect
    from sparselens.workbench.listing import show

    text = sys.stdin.read() if query == "-" else query
    if form is Format.PARQUET and output is None and sys.stdout.isatty():
        raise ValueError("Parquet is binary: give --output FILE, or pipe it")
    with connect(trace) as opened:
        result = opened.sql(text, max_rows=max_rows, timeout=timeout)
    if result.truncated:
        print(f"only the first {max_rows} rows; raise --max-rows for more", file=sys.stderr)
    if form is Format.PARQUET:
        from pyarrow import parquet

        parquet.write_table(result.arrow(), output or sys.stdout.buffer)
    elif form is Format.TABLE:
        rows = [dict(zip(result.columns, row, strict=True)) for row in result.rows]
        show(rows, empty="no rows")
    else:
        frame = result.df()
        written = frame.to_csv(index=False) if form is Format.CSV else _as_json(frame)
        if output is None:
            print(written, end="" if written.endswith("\n") else "\n")
        else:
            output.write_text(written, encoding="utf-8")


def _as_json(frame: object) -> str:
    """A list of objects, with times as ISO 8601 and missing values as null."""
    return str(frame.to_json(orient="records", date_format="iso", indent=1))  # type: ignore[attr-defined]


COMMAND = sql
