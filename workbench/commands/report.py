"""`sparselens report`: what policies changed, in sentences."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    base: Annotated[str, typer.Argument(help="The base run: id or name.")],
    runs: Annotated[list[str], typer.Argument(help="The runs to report on.")],
    trace: Annotated[Path, typer.Option(help="The trace folder.")],
) -> None:
    """Say which heads changed what they write on the rows that matter, and what it cost."""
    from sparselens.analyses.report import report as write

    print(write(trace, base, runs))


COMMAND = report
