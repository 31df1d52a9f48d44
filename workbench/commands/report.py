"""`sparselens report`: what policies preserved and dropped, and which heads repair it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    """How a report is written."""

    TEXT = "text"
    MARKDOWN = "markdown"
    HTML = "html"


ENDINGS = {".md": Format.MARKDOWN, ".markdown": Format.MARKDOWN, ".html": Format.HTML, ".htm": Format.HTML}


def report(
    base: Annotated[str, typer.Argument(help="The base run: id, name or policy.")],
    runs: Annotated[list[str], typer.Argument(help="The runs to report on, side by side.")],
    trace: Annotated[Path, typer.Option(help="The trace folder, or a file made by pack.")],
    form: Annotated[
        Format | None,
        typer.Option("--format", help="HTML is one file that loads nothing. [by FILE's ending]"),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write into this file instead.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many heads of each run to tell in full.")] = 8,
) -> None:
    """Say what was preserved, what was dropped and which heads repair it, from the tables alone."""
    from sparselens.analyses.report.report import report as write

    if form is None:
        form = Format.TEXT if output is None else ENDINGS.get(output.suffix.lower(), Format.TEXT)
    written = write(trace, base, runs, form=form.value, top=top).rstrip("\n")
    if output is None:
        print(written)
        return
    output.write_text(f"{written}\n", encoding="utf-8")
    print(f"{output}: {form.value}, {output.stat().st_size:,} bytes")


COMMAND = report
