"""Finding the runs that a question is about."""

from __future__ import annotations

from typing import Any

from sparselens.storage.reader import Connection

_RUNS = "SELECT * FROM runs ORDER BY created_at DESC"


def find_run(connection: Connection, name: str) -> dict[str, Any]:
    """Return the `runs` row of an id, a name, or a policy's call; the newest where several captures share a name.

    Raises `ValueError` that lists what the trace has.
    """
    rows = connection.sql(_RUNS).arrow().to_pylist()
    exact = [row for row in rows if row["run_id"] == name]
    called = (name, name.removesuffix("()"))
    named = [
        row for row in rows if row["kind"] == "capture" and (row["name"] in called or row["policy"] in called)
    ]
    found = exact or [row for row in named if row["status"] == "complete"] or named
    if not found:
        known = ", ".join(f"{row['name']} ({row['run_id']})" for row in rows if row["kind"] == "capture")
        raise ValueError(
            f"no run {name!r} in this trace; it has {known or 'none: run `sparselens capture` first'}"
        )
    row: dict[str, Any] = found[0]
    return row
