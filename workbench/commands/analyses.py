"""`sparselens analyses`: the questions that can be asked, with their parameters."""

from __future__ import annotations

from typing import Annotated

import typer


def analyses(
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list of objects.")] = False,
) -> None:
    """List the analyses: what each asks, whether it runs a model, its parameters."""
    from sparselens.analyses.analysis import analyses as found
    from sparselens.workbench.listing import show, written

    show(
        [
            {
                "name": analysis.name,
                "question": analysis.question,
                "runs_a_model": analysis.needs_model,
                "parameters": analysis.defaults() if as_json else written(analysis.defaults()),
            }
            for analysis in found().values()
        ],
        as_json=as_json,
    )


COMMAND = analyses
