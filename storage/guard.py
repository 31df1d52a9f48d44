"""What a query may be: one SELECT or EXPLAIN whose syntax tree only reads the views.

DuckDB's own switches are not enough (tried with 2.0.0): `allowed_directories` lets COPY and ATTACH write inside
the trace, `extract_statements` calls `WITH x AS (COPY … TO 'f') SELECT * FROM x` a SELECT, EXPLAIN ANALYZE runs
what it explains. So a statement must be a SELECT for the parser, and its tree may hold query nodes, tables and
harmless table functions only. Files, those of the trace too, are read through the views only: a link in a
foreign trace could point anywhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import duckdb

LONGEST_TEXT = 50_000  # characters of a query
MOST_KNOWN = 256  # texts that are remembered as checked

_NODES = frozenset({"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"})
_CATALOG_VIEWS = ("duckdb_columns", "duckdb_tables", "duckdb_views")
_TABLE_FUNCTIONS = frozenset(
    {
        "range",
        "generate_series",
        "unnest",
        "json_each",
        "json_tree",
        *_CATALOG_VIEWS,
    }
)
_REFUSED_FUNCTIONS = frozenset(
    [
        *("getenv", "current_setting", "write_log", "setseed", "setval", "nextval"),  # beyond the tables
        *("json_serialize_plan", "json_deserialize_sql"),  # they read a text as SQL
        *("repeat", "lpad", "rpad", "printf", "format"),  # texts of any length from a short query
        *("list_resize", "array_resize"),
        *("sleep_ms", "pg_sleep"),
    ]
)
# Views about the process and its settings, not about the trace.
_MACHINE = re.compile(r"(pg|duckdb|pragma|sqlite)_", re.IGNORECASE)
_FILE_NAME = re.compile(r"[./\\:*?]")
_EXPLAIN = re.compile(r"\s*EXPLAIN\b\s*(ANALYZE\b|\(\s*ANALYZE\s*\))?", re.IGNORECASE)
_COMMENT = re.compile(r"\s*(--[^\n]*(\n|$)|/\*.*?\*/)", re.DOTALL)


_known: dict[str, str] = {}
"""What is run in place of texts that passed; the check sees the text alone, so its answer stays."""


class SqlError(ValueError):
    """A query that was refused, stopped or wrong, said in one line."""


def guard(connection: Any, text: str) -> str:
    """The text to run in place of `text`; SqlError in one line if it may do anything but read the views."""
    passed = _known.get(text)
    if passed is None:
        passed = _checked(connection, text)
        if len(_known) >= MOST_KNOWN:
            _known.clear()
        _known[text] = passed
    return passed


def _checked(connection: Any, text: str) -> str:
    statement = _one_statement(connection, text)
    if _kind(statement) == "EXPLAIN":
        prefix, inner = _explained(statement.query)
        checked = _one_statement(connection, inner)
        _check_select(connection, checked)
        return f"{prefix} {checked.query}"
    _check_select(connection, statement)
    return str(statement.query)


def _one_statement(connection: Any, text: str) -> Any:
    """The only statement of a text."""
    if len(text) > LONGEST_TEXT:
        raise SqlError(f"refused: the query has {len(text):,} characters; up to {LONGEST_TEXT:,} are taken")
    try:
        statements = connection.extract_statements(text)
    except duckdb.Error as error:
        raise SqlError(one_line(error)) from error
    if len(statements) != 1:
        found = "none" if not statements else f"{len(statements)}"
        raise SqlError(f"refused: one statement is run at a time, found {found}")
    return statements[0]


def _kind(statement: Any) -> str:
    """The statement's type as DuckDB names it; `this` for those that its Python face has no name for."""
    try:
        return str(statement.type.name)
    except ValueError:  # UPDATE EXTENSIONS
        return "this"


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
    kind = _kind(statement)
    if kind != "SELECT":
        raise SqlError(f"refused: only SELECT and EXPLAIN are run here, not {kind}")
    serialized = connection.execute("SELECT json_serialize_sql(?)", [statement.query]).fetchone()[0]
    try:
        tree = json.loads(serialized)
    except RecursionError as error:
        raise SqlError("refused: the query is nested too deeply") from error
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
    if kind == "BASE_TABLE":
        _check_table(*(str(node.get(f"{part}_name", "")) for part in ("catalog", "schema", "table")))
    if node.get("class") == "FUNCTION" and str(node.get("function_name", "")).lower() in _REFUSED_FUNCTIONS:
        raise SqlError(f"refused: function {node['function_name']} is not available here")


def _check_table(catalog: str, schema: str, name: str) -> None:
    """Raise SqlError if the name of a table is that of a file, or of a view about the process."""
    for part in (catalog, schema, name):
        if _FILE_NAME.search(part):
            raise SqlError(f"refused: {part!r} looks like a file; read the views")
    if schema.lower() == "pg_catalog" or (_MACHINE.match(name) and name.lower() not in _CATALOG_VIEWS):
        raise SqlError(f"refused: {name} is not about the trace; read the views")


def one_line(error: BaseException) -> str:
    """An error of DuckDB in one line, without the drawing under it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if isinstance(error, duckdb.OutOfMemoryException | MemoryError):
        return f"stopped: the query needs more memory than it is given ({text})"
    return text
