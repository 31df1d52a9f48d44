"""The one door for SQL: one reading statement, capped in time, memory, rows and bytes.

Used by the command line, `sparselens.connect` and the page. DuckDB's own switches are not enough (tried
with 2.0.0): `allowed_directories` lets COPY and ATTACH write inside the trace, `extract_statements` calls
`WITH x AS (COPY … TO 'f') SELECT * FROM x` a SELECT, EXPLAIN ANALYZE runs what it explains. So a statement
must be a SELECT for the parser, its syntax tree may hold query nodes, tables and harmless table functions
only, exactly the checked text is run, in a read-only transaction, with external access off and the
configuration locked. Files, those of the trace too, are read through the views only: a link in a foreign
trace could point anywhere.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb
import pyarrow as pa

MAX_ROWS, MAX_BYTES, TIMEOUT, MEMORY = 1_000_000, 1 << 30, 60.0, "2GB"

_NODES = frozenset({"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"})
_TABLE_FUNCTIONS = frozenset(
    {
        "range",
        "generate_series",
        "unnest",
        "json_each",
        "json_tree",
        "duckdb_columns",
        "duckdb_tables",
        "duckdb_views",
    }
)
_REFUSED_FUNCTIONS = frozenset(  # some read the environment, some make strings without limit
    ["getenv", "repeat", "lpad", "rpad", "list_resize", "array_resize", "write_log"]
)
_FILE_NAME = re.compile(r"[./\\:*?]")
_EXPLAIN = re.compile(r"\s*EXPLAIN\b\s*(ANALYZE\b|\(\s*ANALYZE\s*\))?", re.IGNORECASE)
_COMMENT = re.compile(r"\s*(--[^\n]*(\n|$)|/\*.*?\*/)", re.DOTALL)


class SqlError(ValueError):
    """A query that was refused, stopped or wrong, said in one line."""


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


def guard(connection: Any, text: str) -> str:
    """The text to run in place of `text`; SqlError in one line if it may do anything but read the views."""
    statement = _one_statement(connection, text)
    if statement.type == duckdb.StatementType.EXPLAIN:
        prefix, inner = _explained(statement.query)
        checked = _one_statement(connection, inner)
        _check_select(connection, checked)
        return f"{prefix} {checked.query}"
    _check_select(connection, statement)
    return str(statement.query)


def _one_statement(connection: Any, text: str) -> Any:
    """The only statement of a text."""
    try:
        statements = connection.extract_statements(text)
    except duckdb.Error as error:
        raise SqlError(one_line(error)) from error
    if len(statements) != 1:
        found = "none" if not statements else f"{len(statements)}"
        raise SqlError(f"refused: one statement is run at a time, found {found}")
    return statements[0]


def _explained(query: str) -> tuple[str, str]:
    """`EXPLAIN` or `EXPLAIN ANALYZE`, and the statement after it."""
    while comment := _COMMENT.match(query):
        query = query[comment.end() :]
    found = _EXPLAIN.match(query)
    if found is None:
        raise SqlError("refused: EXPLAIN is taken as `EXPLAIN query` or `EXPLAIN ANALYZE query`")
    return ("EXPLAIN ANALYZE" if found.group(1) else "EXPLAIN"), query[found.end() :]


def _check_select(connection: Any, statement: Any) -> None:
    """Raise SqlError unless the statement is a SELECT whose tree holds reading only."""
    kind = statement.type.name
    if statement.type != duckdb.StatementType.SELECT:
        raise SqlError(f"refused: only SELECT and EXPLAIN are run here, not {kind}")
    tree = json.loads(connection.execute("SELECT json_serialize_sql(?)", [statement.query]).fetchone()[0])
    if tree.get("error"):
        raise SqlError(f"refused: this form of SELECT cannot be checked ({tree.get('error_message')})")
    for node in _nodes(tree):
        _check_node(node)


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every object in a syntax tree."""
    waiting = [tree]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            yield item
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)


def _check_node(node: dict[str, Any]) -> None:
    """Raise SqlError if one node of the tree is more than reading."""
    kind = str(node.get("type", ""))
    if kind.endswith("_NODE") and kind not in _NODES:
        raise SqlError(f"refused: only reading is done here, not {kind.partition('_')[0]}")
    if kind == "TABLE_FUNCTION":
        name = str(node.get("function", {}).get("function_name", "")).lower()
        if name not in _TABLE_FUNCTIONS:
            allowed = ", ".join(sorted(_TABLE_FUNCTIONS))
            raise SqlError(f"refused: table function {name} (allowed: {allowed}); read the views")
    if kind == "BASE_TABLE" and _FILE_NAME.search(str(node.get("table_name", ""))):
        raise SqlError(f"refused: {node['table_name']!r} looks like a file; read the views")
    if node.get("class") == "FUNCTION" and str(node.get("function_name", "")).lower() in _REFUSED_FUNCTIONS:
        raise SqlError(f"refused: function {node['function_name']} is not available here")


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

    timer = threading.Timer(timeout, stop)
    timer.daemon = True
    timer.start()
    try:
        checked = guard(cursor, text)
        cursor.execute("BEGIN TRANSACTION READ ONLY")
        table, types, truncated = _fetch(cursor, checked, parameters, max_rows, max_bytes)
    except duckdb.IOException:
        raise
    except (duckdb.Error, OSError) as error:
        if stopped.is_set():
            raise SqlError(f"stopped after {timeout:g} s: the query takes too long") from error
        raise SqlError(one_line(error)) from error
    finally:
        timer.cancel()
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
    return pa.Table.from_batches(batches, schema=reader.schema), types, truncated


def one_line(error: BaseException) -> str:
    """An error of DuckDB in one line, without the drawing under it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if isinstance(error, duckdb.OutOfMemoryException):
        return f"stopped: the query needs more memory than it is given ({text})"
    return text


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
