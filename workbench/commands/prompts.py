"""`sparselens prompts`: which built-in prompt sets there are, with their parameters."""

from __future__ import annotations

from typing import Annotated

import typer


def prompts(as_json: Annotated[bool, typer.Option("--json", help="A JSON list of objects.")] = False) -> None:
    """List the built-in prompt sets; a JSONL or Parquet file works too, and `-` for stdin."""
    from sparselens.workbench.listing import show, written
    from sparselens.workbench.prompt_set import prompt_sets

    show(
        [
            {
                "name": found.name,
                "parameters": found.parameters() if as_json else written(found.parameters()),
                "description": found.description,
            }
            for found in prompt_sets().values()
        ],
        as_json=as_json,
    )


COMMAND = prompts
