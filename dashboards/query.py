"""SQL access of the pages: named parameters, a small memory, one kind of error.

Every read goes through the SQL door (`sparselens.storage.reader.connect`), so a page cannot do what a user
of the SQL page cannot. Captures that are written meanwhile appear without a restart.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar, cast

import duckdb

from sparselens.storage import reader
from sparselens.storage.box import Box

MAX_ROWS = 500_000
SECONDS = 20.0
FILE_ROWS = 100_000  # of a result that is kept as a file
KEPT = 128
Made = TypeVar("Made")
Value = str | bool | int | float | None | list[str] | list[int]


class SourceError(ValueError):
    """The trace cannot answer; the message is one line for the page, `advice` a command that helps."""

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.advice = advice


def literal(value: Value) -> str:
    """A Python value as a DuckDB literal; a list becomes `(…)`, None and NaN become NULL."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "NULL"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "(" + (", ".join(literal(each) for each in value) or "NULL") + ")"
    if isinstance(value, str):
        return "'" + value.replace("\0", "").replace("'", "''") + "'"
    return repr(value)


def bound(sql: str, values: dict[str, Value]) -> str:
    """SQL with each `$name` replaced by the literal of its value; an unknown name raises ValueError."""

    def put(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise ValueError(f"the query names ${match[1]}; given are {', '.join(values) or 'none'}")
        return literal(values[match[1]])

    return re.sub(r"\$([a-z_][a-z_0-9]*)", put, sql)


class Source:
    """The trace behind the pages. What was read is remembered while the trace stands still.

    Every read looks whether the trace has changed; with `follow=False` only `look` does: once for an answer is enough.
    """

    def __init__(self, path: Path | str, *, follow: bool = True) -> None:
        self.path = Path(path)
        self._follow = follow
        self._open: reader.Connection | None = None
        self._kept: OrderedDict[str, Any] = OrderedDict()
        self._lock = Lock()
        self._box = Box(self.path)
        self._state: int | None = None

    def look(self) -> None:
        """Take in runs and parts that came or went. A trace that is not there yet is no error here."""
        with suppress(SourceError):
            self.through(lambda opened: opened.refresh())

    def state(self) -> int:
        """Changes whenever a run or a part of a run appears, ends or goes; SourceError when there is no trace."""
        return self.through(lambda opened: opened.state())

    def run(
        self,
        sql: str,
        values: dict[str, Value] | None = None,
        *,
        max_rows: int = MAX_ROWS,
        timeout: float = SECONDS,
    ) -> reader.Result:
        """The door's result of one statement, with `$name` parameters.

        Raises:
            SourceError: no trace, a newer schema, a refused or failing statement, or out of time.

        """
        connection = self._connection()
        try:
            return connection.sql(sql, values, max_rows=max_rows, timeout=timeout)
        except (ValueError, OSError, duckdb.Error) as problem:
            raise SourceError(one_line(problem)) from problem

    def ask(self, sql: str, *, max_rows: int, timeout: float) -> reader.Result:
        """The result of a query that somebody wrote, run in a process that is ended when it takes too much.

        Raises:
            SourceError: as `run`, and where the process had to be ended.

        """
        self._connection()
        try:
            return self._box.sql(sql, max_rows=max_rows, timeout=timeout)
        except (ValueError, OSError) as problem:
            raise SourceError(one_line(problem)) from problem

    def frame(self, sql: str, **values: Value) -> Any:
        """A data frame of a query with `$name` parameters; treat it as read-only, it may be shared."""
        named = set(re.findall(r"\$([a-z_]+)", sql))
        if named - set(values):
            raise ValueError(
                f"the query names ${min(named - set(values))}; given are {', '.join(values) or 'none'}"
            )
        used = {name: value for name, value in values.items() if name in named}
        return self.kept(f"{used} {sql}", lambda: self.run(sql, used).df())

    def kept(self, name: str, make: Callable[[], Made]) -> Made:
        """What `make` returns, remembered under a name until the trace changes or newer things come.

        A ValueError of `make` is a SourceError: what it read is broken.
        """
        state = self.state()
        with self._lock:
            if state != self._state:
                self._kept.clear()
                self._state = state
            if name in self._kept:
                self._kept.move_to_end(name)
                return cast("Made", self._kept[name])
        try:
            made = make()
        except SourceError:
            raise
        except ValueError as problem:  # stored bytes that are not what they should be
            raise SourceError(f"The trace is broken here: {one_line(problem)}") from problem
        with self._lock:
            self._kept[name] = made
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return made

    def through(self, make: Callable[[reader.Connection], Made]) -> Made:
        """What `make` returns of the open trace; whatever it cannot do is a SourceError."""
        connection = self._connection()
        try:
            return make(connection)
        except (ValueError, OSError, duckdb.Error) as problem:
            raise SourceError(one_line(problem)) from problem

    def records(self, sql: str, **values: Value) -> list[dict[str, Any]]:
        """Rows as dictionaries of plain Python values, NULL and NaN as None."""
        return records(self.frame(sql, **values))

    def first(self, sql: str, **values: Value) -> dict[str, Any]:
        """The first row as a dictionary, empty when there is none."""
        rows = self.records(sql, **values)
        return rows[0] if rows else {}

    def _connection(self) -> reader.Connection:
        with self._lock:
            if self._open is None:
                if not self.path.exists():
                    raise SourceError(f"There is no trace at {self.path}.", capture_command(self.path))
                try:
                    self._open = reader.connect(self.path, follow=self._follow)
                except (ValueError, OSError, duckdb.Error) as problem:
                    raise SourceError(f"{self.path} cannot be read: {one_line(problem)}") from problem
            return self._open


def records(frame: Any) -> list[dict[str, Any]]:
    """Rows of a frame as dictionaries fit for JSON: numpy scalars unpacked, NaN, infinities and NaT as None."""
    columns = [_listed(column) for _, column in frame.items()]
    names = list(frame.columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _listed(column: Any) -> list[Any]:
    values: list[Any] = column.tolist()
    if column.dtype.kind in "biu":
        return values
    return [None if gone else _plain(value) for value, gone in zip(values, column.isna(), strict=True)]


def _plain(value: Any) -> Any:
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def one_line(problem: BaseException) -> str:
    """An error as one short line."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return (lines[0] if lines else type(problem).__name__)[:400]


def capture_command(path: Path) -> str:
    """The command that fills a trace."""
    return (
        'sparselens capture smollm2-135m --prompts "needles(length=512)" '
        f'--policy "a_shape(sink=4,window=64)" --trace {path}'
    )
