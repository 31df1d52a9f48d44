"""`trace.duckdb`: the views over globs, for other DuckDB clients; open it read-only in the trace's folder.

Names in it are relative to the folder (or `SET file_search_path`). Merged runs hide the parts that the
manifest no longer names, so a prompt is there once at every moment. A client that opened it for writing may
leave a `.wal`, after which nobody can open it: our tools then make it again.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

import duckdb

from sparselens.storage.disk import TEMPORARY, temporary
from sparselens.storage.schema import STORED
from sparselens.storage.trace import STALE_AFTER, Trace
from sparselens.storage.views import HOMES, comments, public_views, superseded

_FILES = """
CREATE VIEW stored.hidden AS
SELECT file FROM (
  SELECT file, string_split(replace(file, '\\', '/'), '/') AS p FROM glob('runs/*/part-*/*.parquet'))
JOIN read_parquet('*/*/run.parquet') AS r ON r.run_id = p[-3]
WHERE r.folders IS NOT NULL AND NOT list_contains(r.folders, p[-2])
"""

_BEATS = """
CREATE VIEW stored.beats AS
SELECT string_split(replace(filename, '\\', '/'), '/')[-2] AS run_id,
  coalesce(epoch(current_timestamp) - (content->>'at')::DOUBLE < {stale}, false)
    AND NOT coalesce((content->>'stopped')::BOOLEAN, false) AS beating
FROM read_text('runs/*/heartbeat.json')
"""

_RUNS = """
CREATE VIEW stored.runs AS
SELECT r.* REPLACE (
  coalesce(p.n_prompts, r.n_prompts)::UINTEGER AS n_prompts,
  coalesce(p.n_tokens, r.n_tokens)::UBIGINT AS n_tokens,
  CASE WHEN r.folders IS NOT NULL THEN 'complete' WHEN b.beating THEN 'running'
    ELSE 'interrupted' END AS status)
FROM read_parquet('*/*/run.parquet') AS r
LEFT JOIN (
  SELECT run_id, count(*) AS n_prompts, sum(n_tokens) AS n_tokens FROM stored.prompts GROUP BY run_id) AS p
  ON r.folders IS NULL AND p.run_id = r.run_id
LEFT JOIN stored.beats AS b ON b.run_id = r.run_id
"""


def statements() -> list[str]:
    """All statements that make the file."""
    made = ["CREATE SCHEMA stored", _FILES]
    for name in STORED:
        scan = f"read_parquet('*/*/part-*/{name}.parquet', filename = 'stored_in', union_by_name = true)"
        made.append(
            f"CREATE VIEW stored.{name} AS SELECT * EXCLUDE (stored_in) FROM {scan} AS f "
            "ANTI JOIN stored.hidden AS h ON h.file = f.stored_in"
        )
    made += [_BEATS.format(stale=STALE_AFTER), _RUNS]
    made += [f"CREATE VIEW stored.homes AS {HOMES}", f"CREATE VIEW stored.superseded AS {superseded()}"]
    made += [f"CREATE VIEW {name} AS {query}" for name, query in public_views().items()]
    return made + comments()


def fingerprint() -> str:
    """Changes when the views change: an older file is then made again."""
    return hashlib.sha256("\n".join(statements()).encode()).hexdigest()[:16]


def ensure_views_file(trace: Trace) -> None:
    """Make trace.duckdb if it is missing, outdated or has a stray `.wal`; not in a read-only folder."""
    target = trace.path / "trace.duckdb"
    stamp = trace.path / "schema" / "views.txt"
    wal = trace.path / "trace.duckdb.wal"
    with suppress(OSError):
        if target.exists() and not wal.exists() and stamp.exists() and stamp.read_text() == fingerprint():
            return
        _make(trace.path, target)
        wal.unlink(missing_ok=True)
        stamp.write_text(fingerprint())


def _make(folder: Path, target: Path) -> None:
    """Build the file beside and put it in place, its views bound from the folder."""
    draft = temporary(target)
    try:
        with duckdb.connect(str(draft)) as connection:
            connection.execute("SET file_search_path = $folder", {"folder": str(folder.resolve())})
            connection.execute("BEGIN")
            for statement in statements():
                connection.execute(statement)
            connection.execute("COMMIT")
            connection.execute("CHECKPOINT")
        draft.replace(target)
    finally:
        for leftover in folder.glob(f"{TEMPORARY}trace.duckdb*"):
            leftover.unlink(missing_ok=True)
