"""`sparselens note`: what somebody has to say about a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def note(
    run: Annotated[str, typer.Argument(help="A run's id, its beginning, or its name.")],
    text: Annotated[str, typer.Argument(help="The note, in place of an older one; '' takes that back.")],
    trace: Annotated[Path, typer.Option(help="The trace folder.")],
) -> None:
    """Write a note on a run; `show`, the Runs page and the table `notes` have it."""
    from sparselens.storage.notes import note as write

    about = write(trace, run, text)
    done = "noted on" if text.strip() else "took back the note on"
    print(f"{done} {about.record.name or about.run_id}")


COMMAND = note
