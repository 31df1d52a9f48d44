"""`sparselens merge`: runs of other traces into one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def merge(
    sources: Annotated[list[Path], typer.Argument(help="Traces whose runs are copied.")],
    trace: Annotated[Path, typer.Option(help="The trace they go into; made where there is none.")],
) -> None:
    """Copy the runs of other traces into one; runs that are there already are left alone."""
    from sparselens.storage.merge import merge as copy

    for source in sources:
        print(f"{source}: {len(copy(source, trace))} runs copied into {trace}")


COMMAND = merge
