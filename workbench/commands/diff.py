"""`sparselens diff`: what changed between two runs of the same prompts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def diff(
    run_a: Annotated[str, typer.Argument(help="The run that is compared with: id or name.")],
    run_b: Annotated[str, typer.Argument(help="The run that is looked at; changes are B - A.")],
    trace: Annotated[Path, typer.Option(help="The trace folder.")],
    top: Annotated[int, typer.Option(min=1, help="How many heads to print.")] = 20,
    again: Annotated[bool, typer.Option("--again", help="Compute anew what was computed before.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list of objects.")] = False,
) -> None:
    """Show the heads that changed most between two runs, from what the tables hold."""
    from sparselens.analyses.diff import diff as compute
    from sparselens.workbench.listing import show

    found = compute(trace, run_a, run_b, top=top, again=again)
    if not as_json:
        print(f"means over prompts, on rows: {found.over}")
    show(found.rows, as_json=as_json, empty="no head differs")
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)


COMMAND = diff
