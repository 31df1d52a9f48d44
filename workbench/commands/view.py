"""`sparselens view`: the pages over a trace, served on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def view(
    trace: Annotated[Path, typer.Option(help="The trace folder.")],
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="A taken port moves on to the next free one.")
    ] = 8050,
    host: Annotated[
        str, typer.Option(help="Only this machine unless you say otherwise; then with a token.")
    ] = "127.0.0.1",
) -> None:
    """Open a trace in the browser; Ctrl-C ends it. Captures may write the trace meanwhile."""
    from sparselens.dashboards.app import serve
    from sparselens.storage.trace import Trace

    Trace.open(trace)
    serve(trace, port, host)


COMMAND = view
