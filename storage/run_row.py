"""Runs as rows of the table `runs`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from sparselens.storage.column import NAMES
from sparselens.storage.disk import sync, temporary
from sparselens.storage.run_tables import RUNS

if TYPE_CHECKING:
    from sparselens.storage.trace import Run

SCHEMA = RUNS.arrow.append(pa.field("folders", NAMES))
_JSON = ("args", "packages", "extra", "verify_detail")
_TIMES = ("created_at", "finished_at")


def runs_table(runs: Sequence[Run]) -> Any:
    """An arrow table in the schema of `runs` plus `folders` (NULL while a run is not complete)."""
    return pa.Table.from_pylist([_row(run) for run in runs], schema=SCHEMA)


def _row(run: Run) -> dict[str, Any]:
    """One run's values."""
    record = run.record
    row = {name: getattr(record, name, None) for name in SCHEMA.names}
    row.update({name: _json(row[name]) for name in _JSON})
    row.update({name: _naive(row[name]) for name in _TIMES})
    seconds = record.seconds or 0.0
    rate = run.n_tokens / seconds if seconds > 0 else None
    row.update(status=run.status, n_prompts=len(run.prompt_ids), n_tokens=run.n_tokens, tokens_per_s=rate)
    return row


def _json(value: Any) -> str | None:
    """A JSON object with sorted keys: equal arguments are equal strings."""
    return None if value is None else json.dumps(value, sort_keys=True, ensure_ascii=False)


def _naive(value: str | None) -> datetime | None:
    """A time in UTC without its zone, as the table has it."""
    return None if value is None else datetime.fromisoformat(value).replace(tzinfo=None)


def write_run_row(folder: Path, runs: Sequence[Run]) -> None:
    """Write `run.parquet`, from which the views in trace.duckdb read a run (none: the empty shard)."""
    target = folder / "run.parquet"
    draft = temporary(target)
    pq.write_table(runs_table(runs), draft)
    sync(draft)
    draft.replace(target)
