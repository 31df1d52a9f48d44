"""Finding the runs that a question is about."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparselens.storage.reader import Connection, connect

if TYPE_CHECKING:
    from sparselens.workbench.run import RunHandle

CARRIED = (
    "model",
    "model_revision",
    "weight_hash",
    "quantisation",
    "tokenizer_hash",
    "template_hash",
    "dtype",
    "policy",
    "policy_json",
    "policy_hash",
    "policy_source",
    "phase",
    "off_label",
    "lookahead",
    "kernel",
    "seed",
    "prompt_set",
)
"""What an analysis of a run says about itself as the run does."""

_RUNS = "SELECT * FROM runs ORDER BY created_at DESC"


def find_run(connection: Connection, name: str) -> dict[str, Any]:
    """Return the `runs` row of an id or its beginning, a name, or a policy's call; the newest of equal names.

    Raises `ValueError` that lists what the trace has.
    """
    rows = connection.sql(_RUNS).arrow().to_pylist()
    exact = [row for row in rows if row["run_id"] == name]
    begins = [row for row in rows if len(name) >= 8 and row["run_id"].startswith(name)]
    called = (name, name.removesuffix("()"))
    named = [
        row for row in rows if row["kind"] == "capture" and (row["name"] in called or row["policy"] in called)
    ]
    found = exact or [row for row in named if row["status"] == "complete"] or named or begins
    if found is begins and len(begins) > 1:
        raise ValueError(f"{len(begins)} runs begin with {name!r}: give more of the id")
    if not found:
        known = ", ".join(f"{row['name']} ({row['run_id']})" for row in rows if row["kind"] == "capture")
        raise ValueError(
            f"no run {name!r} in this trace; it has {known or 'none: run `sparselens capture` first'}"
        )
    row: dict[str, Any] = found[0]
    return row


def open_run(trace: str | Path, name: str) -> RunHandle:
    """Return the handle of a run that is in a trace, by id, its beginning, name or policy, as `capture` returns it.

    Raises `ValueError` that lists what the trace has.
    """
    # brings torch, which the pages that import this file do without
    from sparselens.workbench.run import RunHandle

    with connect(trace) as connection:
        row = find_run(connection, name)
    return RunHandle(row["run_id"], row["name"], row["policy"] or "", Path(trace))


def carried(record: Any) -> dict[str, Any]:
    """Return the fields of a run's record that an analysis of it carries on."""
    return {name: getattr(record, name) for name in CARRIED}
