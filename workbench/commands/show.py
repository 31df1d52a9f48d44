"""`sparselens show`: everything a trace says about one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_NOTE = "SELECT text FROM notes WHERE run_id = $run"


def show(
    run: Annotated[str, typer.Argument(help="A run's id, its beginning, or its name.")],
    trace: Annotated[Path, typer.Option(help="The trace folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object: the run's record.")] = False,
) -> None:
    """Show one run: model, policy, hashes, versions, checks, the command, and how many rows it has."""
    import json

    from sparselens.storage.reader import connect
    from sparselens.storage.trace import Trace
    from sparselens.workbench.listing import show as show_rows

    found = Trace.open(trace).run(run)
    record = json.loads(found.record.to_json())
    counts: dict[str, int] = {}
    for part in found.parts:
        for table, rows in part["rows"].items():
            counts[table] = counts.get(table, 0) + int(rows)
    record |= {"status": found.status, "n_prompts": len(found.prompt_ids), "n_tokens": found.n_tokens}
    with connect(trace) as opened:
        notes = opened.sql(_NOTE, {"run": found.run_id}).rows
    record["note"] = notes[0][0] if notes else None
    if as_json:
        print(json.dumps({**record, "rows": counts}, indent=1))
        return
    show_rows(
        [{"field": name, "value": value} for name, value in record.items() if value not in (None, {}, [])]
    )
    print()
    show_rows([{"table": name, "rows": rows} for name, rows in sorted(counts.items())], empty="no rows yet")


COMMAND = show
