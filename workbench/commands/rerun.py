"""`sparselens rerun`: repeat a run and say whether it comes out the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def rerun(
    run: Annotated[str, typer.Argument(help="A run's id, its beginning, or its name.")],
    trace: Annotated[Path, typer.Option(help="The trace folder.")],
    model: Annotated[str | None, typer.Option(help="Where the same weights lie now, if elsewhere.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list of objects.")] = False,
) -> None:
    """Repeat a run on the same tokens from its record, in a scratch trace, and compare every number."""
    from sparselens.workbench.listing import show
    from sparselens.workbench.rerun import rerun as repeat

    differences = repeat(trace, run, model=model)
    show([difference.row() for difference in differences], as_json=as_json)
    if not as_json:
        worst = max((difference.largest for difference in differences), default=0.0)
        print("equal" if worst == 0 else f"differs by at most {worst:.3g}")


COMMAND = rerun
