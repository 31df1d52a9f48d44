"""Reading a trace: `connect(path).sql("…")`, views that follow captures while they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import duckdb

from sparselens.storage.door import (
    MAX_BYTES,
    MAX_ROWS,
    MEMORY,
    TIMEOUT,
    Result,
    SqlError,
    lock,
    one_line,
    open_locked,
    run_guarded,
)
from sparselens.storage.live import ATTEMPTS, LiveViews
from sparselens.storage.pack import open_packed
from sparselens.storage.trace import Run, Trace
from sparselens.storage.views_file import ensure_views_file

__all__ = ["Connection", "Result", "SqlError", "connect"]


class Connection:
    """A trace, open for reading; any number of threads may use it. Captures are never locked out.

    Every query looks at the folder first; with `follow=False` only `refresh` does, and a query whose files have gone.
    """

    def __init__(
        self, path: Path, *, memory: str = MEMORY, threads: int | None = None, follow: bool = True
    ) -> None:
        self.path = path
        self._follow = follow
        self.trace = Trace.open(path) if path.is_dir() else None
        self._views: LiveViews | None = None
        if self.trace is None:
            self._duckdb = open_packed(path, memory=memory, threads=threads)
            return
        ensure_views_file(self.trace)
        self._duckdb = open_locked([str(path.resolve())], memory=memory, threads=threads)
        lock(self._duckdb)
        self._views = LiveViews(self.trace, self._duckdb)

    def sql(
        self,
        text: str,
        parameters: Sequence[Any] | Mapping[str, Any] | None = None,
        *,
        max_rows: int | None = MAX_ROWS,
        max_bytes: int = MAX_BYTES,
        timeout: float = TIMEOUT,
    ) -> Result:
        """Run one SELECT or EXPLAIN over the views as they are now; see `door.run_guarded`."""
        caps: dict[str, Any] = {"max_rows": max_rows, "max_bytes": max_bytes, "timeout": timeout}
        for attempt in range(ATTEMPTS):
            changed = self._follow and self.refresh()
            try:
                return run_guarded(self._duckdb, text, parameters, **caps)
            except duckdb.IOException as error:
                if attempt + 1 == ATTEMPTS or not (self.refresh() or changed):
                    raise SqlError(one_line(error)) from error
        raise SqlError("the trace changes faster than it can be read")

    def refresh(self) -> bool:
        """Take in runs and parts that came or went. Returns whether something changed."""
        return self._views.refresh() if self._views else False

    def state(self) -> int:
        """A number that changes whenever what a query sees does; it means nothing to another process."""
        if self._views is None:
            return self.path.stat().st_mtime_ns
        if self._follow:
            self._views.refresh()
        return self._views.state

    def runs(self) -> list[Run]:
        """The runs, oldest first; none for a packed file (ask its `runs` table)."""
        return self.trace.runs() if self.trace else []

    def close(self) -> None:
        """Close the connection."""
        self._duckdb.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def connect(
    path: str | Path, *, memory: str = MEMORY, threads: int | None = None, follow: bool = True
) -> Connection:
    """Open a trace folder, or a file made by `pack`, for reading; `follow`: see `Connection`.

    TraceError in one line if it is not a trace or of a newer schema.
    """
    return Connection(Path(path), memory=memory, threads=threads, follow=follow)
