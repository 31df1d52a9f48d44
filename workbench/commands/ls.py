"""`sparselens ls`: the runs of a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_RUNS = """
SELECT name, run_id, kind, status, model, policy, n_prompts, n_tokens, round(seconds, 1) AS seconds,
       verify_kernel::INT + verify_logits::INT + verify_calls::INT AS verified, created_at
FROM runs WHERE kind <> 'note' ORDER BY created_at, run_id
"""


def ls(
    trace: Annotated[Path, typer.Option(help="The trace folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list of objects.")] = False,
) -> None:
    """List the runs of a trace, oldest first; `verified` counts the checks that held, of three."""
    from sparselens.storage.reader import connect
    from sparselens.workbench.listing import show

    with connect(trace) as opened:
        found = opened.sql(_RUNS)
    rows = [dict(zip(found.columns, row, strict=True)) for row in found.rows]
    show(rows, as_json=as_json, empty=f"{trace} has no runs yet")


COMMAND = ls
