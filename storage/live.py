"""The views of a trace folder in a DuckDB connection, made anew when runs or parts come or go."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import duckdb

from sparselens.storage.run_row import runs_table
from sparselens.storage.schema import SCHEMA_VERSION, STORED
from sparselens.storage.trace import EMPTY, Run, Trace, heartbeat_status, read_heartbeat, read_run
from sparselens.storage.views import HOMES, parquet, public_views, superseded

ATTEMPTS = 5  # a capture may merge its parts between our look at the folder and the scan


class LiveViews:
    """Keeps the views in step with the folder; they list files, so a query reads each prompt once."""

    def __init__(self, trace: Trace, connection: Any) -> None:
        self.trace, self._duckdb = trace, connection
        self._root = trace.path.resolve()
        self._lock = threading.Lock()
        self._seen: dict[Path, tuple[Any, ...]] = {}
        self._runs: dict[Path, Run] = {}
        self._shown: dict[str, str] | None = None  # run id: status
        self.state = 0  # another number whenever the views change
        connection.execute("CREATE SCHEMA stored")
        self.refresh()

    def refresh(self) -> bool:
        """Look at the folder and make the views anew if something changed. Returns whether it did."""
        with self._lock:
            for attempt in range(ATTEMPTS):
                before = self._seen
                try:
                    self._look()
                    statuses = {run.run_id: run.status for run in self._runs.values()}
                    if self._seen == before and statuses == self._shown:
                        return False
                    self._make_views(files_changed=self._seen != before or self._shown is None)
                except (duckdb.IOException, FileNotFoundError):
                    self._seen, self._shown = {}, None
                    if attempt + 1 == ATTEMPTS:
                        raise
                else:
                    self._shown = statuses
                    self.state = hash((*self._seen.items(), *statuses.items()))
                    return True
        return True

    def _look(self) -> None:
        """Read what is new: which parts each run has, and its status."""
        seen: dict[Path, tuple[Any, ...]] = {}
        runs: dict[Path, Run] = {}
        for folder in self.trace.run_folders():
            seen[folder] = _stamp(folder)
            if self._seen.get(folder) != seen[folder]:
                runs[folder] = read_run(folder)
            elif self._runs[folder].status == "complete":
                runs[folder] = self._runs[folder]
            else:
                runs[folder] = self._runs[folder].with_status(heartbeat_status(read_heartbeat(folder)))
        self._seen, self._runs = seen, runs

    def _make_views(self, *, files_changed: bool) -> None:
        """Create or replace every view in one transaction: a query sees all old or all new ones."""
        cursor = self._duckdb.cursor()
        cursor.register("arriving", runs_table(self._ordered()))
        cursor.execute("BEGIN")
        try:
            cursor.execute("CREATE OR REPLACE TABLE stored.runs AS SELECT * FROM arriving")
            if files_changed:
                older = any(run.record.schema_version < SCHEMA_VERSION for run in self._runs.values())
                for name in STORED:
                    files = [str(self._root / EMPTY / f"{name}.parquet"), *self._files(name)]
                    scan = parquet(files, older=older)
                    cursor.execute(f"CREATE OR REPLACE VIEW stored.{name} AS SELECT * FROM {scan}")
                cursor.execute(f"CREATE OR REPLACE TABLE stored.homes AS {HOMES}")
            cursor.execute(f"CREATE OR REPLACE TABLE stored.superseded AS {superseded()}")
            if files_changed:
                for name, query in public_views().items():
                    cursor.execute(f"CREATE OR REPLACE VIEW {name} AS {query}")
            cursor.execute("COMMIT")
        except (
            duckdb.Error
        ):  # a part was merged away meanwhile: an aborted transaction takes no more statements
            cursor.execute("ROLLBACK")
            raise
        finally:
            cursor.unregister("arriving")
            cursor.close()

    def _ordered(self) -> list[Run]:
        """The runs, oldest first."""
        return sorted(self._runs.values(), key=lambda run: (run.record.created_at, run.run_id))

    def _files(self, name: str) -> list[str]:
        """The files of a table in every folder that counts."""
        return [
            str(self._root / folder.relative_to(self.trace.path) / f"{name}.parquet")
            for run in self._ordered()
            for folder, part in zip(run.folders, run.parts, strict=True)
            if name in part["rows"]
        ]


def _stamp(folder: Path) -> tuple[Any, ...]:
    """What changes when rows of a run come or move: its manifest, or while there is none its parts."""
    try:
        about = (folder / "manifest.json").stat()
    except FileNotFoundError:
        return tuple(sorted(entry.name for entry in folder.iterdir() if entry.name.startswith("part-")))
    return (about.st_mtime_ns, about.st_ino)
