"""`pack`: a trace as one self-contained .duckdb file with real tables; and reading such a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb

from sparselens.storage.disk import TraceError, explained, sync, temporary
from sparselens.storage.door import MEMORY, lock, locked_settings, one_line, open_locked
from sparselens.storage.live import LiveViews
from sparselens.storage.schema import PUBLIC, SCHEMA_VERSION, view_columns
from sparselens.storage.trace import Trace
from sparselens.storage.views import comments, quoted


def pack(trace: Trace | str | Path, path: str | Path, *, strip_text: bool = False) -> Path:
    """Write what the trace's views show into one new .duckdb file; `connect` and any client read it.

    With `strip_text` every column is NULL from which the prompts' words could be read: texts, token ids,
    names, metadata, kept vectors (`Column.reveals`). TraceError if the file exists or cannot be written.
    """
    trace = trace if isinstance(trace, Trace) else Trace.open(trace)
    path = Path(path)
    if path.exists():
        raise TraceError(f"{path} exists already")
    draft = temporary(path)
    with explained("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        source = open_locked([str(trace.path.resolve())])  # and left unlocked: it has to write
        try:
            LiveViews(trace, source)
            _write(source, draft, strip_text=strip_text)
            sync(draft)
            draft.replace(path)
        except duckdb.Error as error:
            raise TraceError(f"cannot write {path}: {one_line(error)}") from error
        finally:
            source.close()
            draft.unlink(missing_ok=True)
            draft.with_name(draft.name + ".wal").unlink(missing_ok=True)
    return path


def _write(source: Any, path: Path, *, strip_text: bool) -> None:
    """All tables, their histories and `about`."""
    source.execute(f"ATTACH {quoted(str(path))} AS packed")
    for table in PUBLIC.values():
        columns = ", ".join(
            f"CAST(NULL AS {column.sql_type}) AS {column.name}"
            if strip_text and column.reveals
            else column.name
            for column in view_columns(table)
        )
        for name in (table.name, f"{table.name}_history") if table.history else (table.name,):
            source.execute(f"CREATE TABLE packed.{name} AS SELECT {columns} FROM memory.main.{name}")
    source.execute("CREATE TABLE packed.run_prompts AS FROM memory.main.run_prompts")
    source.execute(
        f"CREATE TABLE packed.about AS SELECT {SCHEMA_VERSION} AS schema_version, "
        f"{strip_text} AS text_stripped, current_timestamp::TIMESTAMP AS packed_at"
    )
    source.execute("USE packed")
    for comment in comments(kind="TABLE"):
        source.execute(comment)
    source.execute("USE memory")
    source.execute("DETACH packed")


def open_packed(path: Path, *, memory: str = MEMORY, threads: int | None = None) -> Any:
    """A locked, read-only connection to a packed trace; TraceError if it is none or of a newer schema."""
    if not path.is_file():
        raise TraceError(f"{path} is not a trace: there is no such folder or file")
    try:
        connection = duckdb.connect(str(path), read_only=True, config=locked_settings(memory, threads))
        found = connection.execute("SELECT schema_version FROM about").fetchone()
    except duckdb.Error as error:
        raise TraceError(f"{path} is not a packed trace: {one_line(error)}") from error
    if found is None or found[0] > SCHEMA_VERSION:
        connection.close()
        known = f"this sparselens reads up to {SCHEMA_VERSION}: upgrade it"
        raise TraceError(f"{path} was written with schema {found[0] if found else '?'}; {known}")
    connection.execute("SET temp_directory = ''")
    lock(connection)
    return connection
