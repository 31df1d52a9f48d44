"""`sparselens pack`: a trace as one DuckDB file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def pack(
    output: Annotated[Path, typer.Argument(help="The .duckdb file to write.")],
    trace: Annotated[Path, typer.Option(help="The trace folder.")],
    strip_text: Annotated[
        bool, typer.Option("--strip-text", help="Leave out what reveals the prompts.")
    ] = False,
) -> None:
    """Write a trace into one self-contained .duckdb file that any DuckDB client opens."""
    from sparselens.storage.pack import pack as write

    write(trace, output, strip_text=strip_text)
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB", file=sys.stderr)


COMMAND = pack
