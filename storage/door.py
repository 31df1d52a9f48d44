"""The one door for SQL: one reading statement, capped in time, memory, rows and bytes.

Used by the command line, `sparselens.connect` and the page. `guard` says what a query may be; exactly the text
it checked is run, in a read-only transaction, with external access off and the configuration locked.

What is not ended here: one call of a function can take minutes or gigabytes, and DuckDB looks at the clock and
at its memory limit only between calls. `storage.box` runs queries in a process that can be ended.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb
import pyarrow as pa

from sparselens.storage.clock import CLOCK
from sparselens.storage.guard import SqlError, guard, one_line

__all__ = ["Result", "SqlError", "lock", "locked_settings", "one_line", "open_locked", "run_guarded"]

MAX_ROWS, MAX_BYTES, TIMEOUT, MEMORY = 1_000_000, 1 << 30, 60.0, "2GB"


@dataclass(frozen=True, eq=False)
class Result:
    """Rows of one query. `truncated` says that a cap cut them off."""

    table: Any  # pyarrow.Table
    truncated: bool
    elapsed: float  # seconds
    types: list[str] = field(default_factory=list)  # DuckDB's

    @property
    def columns(self) -> list[str]:
        """Column names in order."""
        return list(self.table.column_names)

    @property
    def rows(self) -> list[tuple[Any, ...]]:
        """The rows as Python tuples."""
        if not self.table.num_columns:
            return []
        return list(zip(*(column.to_pylist() for column in self.table.columns), strict=True))

    def arrow(self) -> Any:
        """The rows as a `pyarrow.Table`."""
        return self.table

    def df(self) -> Any:
        """The rows as a `pandas.DataFrame`."""
        return self.table.to_pandas()

    def __len__(self) -> int:
        return int(self.table.num_rows)


def run_guarded(
    connection: Any,
    text: str,
    parameters: Sequence[Any] | Mapping[str, Any] | None = None,
    *,
    max_rows: int | None = MAX_ROWS,
    max_bytes: int = MAX_BYTES,
    timeout: float = TIMEOUT,
) -> Result:
    """Check and run one query on a connection whose configuration is locked (`open_locked`).

    Rows beyond `max_rows` or `max_bytes` are left out (`truncated`). SqlError if it is refused, wrong, takes
    more than `timeout` seconds or the connection's memory. `duckdb.IOException` is passed on: the caller may
    know why a file is gone.
    """
    started = time.monotonic()
    cursor = connection.cursor()
    stopped = threading.Event()

    def stop() -> None:
        stopped.set()
        cursor.interrupt()

    running = CLOCK.start(timeout, stop)
    try:
        checked = guard(cursor, text)
        cursor.execute("BEGIN TRANSACTION READ ONLY")
        table, types, truncated = _fetch(cursor, checked, parameters, max_rows, max_bytes)
    except duckdb.IOException:
        raise
    except (duckdb.Error, pa.ArrowException, MemoryError, OSError) as error:
        if stopped.is_set():
            raise SqlError(f"stopped after {timeout:g} s: the query takes too long") from error
        raise SqlError(one_line(error)) from error
    finally:
        CLOCK.stop(running)
        cursor.close()
    return Result(table, truncated, time.monotonic() - started, types)


def _fetch(
    cursor: Any, text: str, parameters: Any, max_rows: int | None, max_bytes: int
) -> tuple[Any, list[str], bool]:
    """Rows in batches until a cap is reached."""
    relation = cursor.sql(text, params=parameters) if parameters else cursor.sql(text)
    types = [str(kind) for kind in relation.types]
    wanted = max_rows if max_rows is not None else 1 << 62
    reader = relation.to_arrow_reader(min(max(wanted + 1, 1), 65_536))
    batches, rows, size = [], 0, 0
    truncated = False
    for batch in reader:
        batches.append(batch.slice(0, max(wanted - rows, 0)))
        rows += batch.num_rows
        size += batch.nbytes
        if rows > wanted or size > max_bytes:
            truncated = True
            break
    table = pa.Table.from_batches(batches, schema=reader.schema)
    return (_fitting(table, max_bytes) if size > max_bytes else table), types, truncated


def _fitting(table: Any, max_bytes: int) -> Any:
    """The longest beginning of a table that has at most so many bytes; SqlError if not even one row has."""
    low, high = 0, table.num_rows
    while low < high:
        middle = (low + high + 1) // 2
        if table.slice(0, middle).nbytes <= max_bytes:
            low = middle
        else:
            high = middle - 1
    if not low and table.num_rows:
        raise SqlError(f"stopped: one row alone has more than {max_bytes / 1e6:,.0f} MB")
    return table.slice(0, low)


def locked_settings(memory: str, threads: int | None) -> dict[str, Any]:
    """Settings of a DuckDB that loads nothing and does not look at Python's variables."""
    settings: dict[str, Any] = {
        "memory_limit": memory,
        "autoload_known_extensions": "false",
        "autoinstall_known_extensions": "false",
        "python_enable_replacements": "false",
    }
    return settings | ({"threads": threads} if threads else {})


def open_locked(folders: Sequence[str], *, memory: str = MEMORY, threads: int | None = None) -> Any:
    """A DuckDB in memory that may read these folders; `lock` it before it takes queries."""
    connection = duckdb.connect(":memory:", config=locked_settings(memory, threads))
    connection.execute("SET GLOBAL parquet_metadata_cache = true")
    connection.execute("SET temp_directory = ''")
    connection.execute(
        "SET allowed_directories = $folders", {"folders": [f"{folder}/" for folder in folders]}
    )
    return connection


def lock(connection: Any) -> None:
    """Turn external access off but for the allowed folders, and forbid to change any setting."""
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
