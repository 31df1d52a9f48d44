"""`sparselens probes`: what a capture keeps, and in which table."""

from __future__ import annotations

from typing import Annotated

import typer


def probes(as_json: Annotated[bool, typer.Option("--json", help="A JSON list of objects.")] = False) -> None:
    """List the probes: what is recorded of every layer while the model runs."""
    from sparselens.workbench.listing import show
    from sparselens.workbench.probe import probes as found

    show(
        [
            {"name": probe.name, "table": probe.table, "default": probe.default, "meaning": probe.meaning}
            for probe in found().values()
        ],
        as_json=as_json,
    )


COMMAND = probes
