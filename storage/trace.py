"""A trace: a folder of runs, each a folder of whole prompts.

    trace/trace.json                      what the folder is, its schema version
    trace/trace.duckdb                    the views, for other DuckDB clients
    trace/schema/v2-…/part-00000/*.parquet       an empty shard of every table of this schema
    trace/runs/RUN/run.json               at the start
    trace/runs/RUN/heartbeat.json         every few seconds while it is written
    trace/runs/RUN/part-00000/*.parquet   all tables of one or more whole prompts, and part.json
    trace/runs/RUN/manifest.json          at the end; names the folders that count

Whatever has `.tmp-` in its name is not finished and is not looked at.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sparselens.storage.disk import (
    TEMPORARY,
    TraceError,
    explained,
    publish_folder,
    remove_folder,
    temporary,
    write_whole,
)
from sparselens.storage.manifest import RunRecord, now
from sparselens.storage.run_row import write_run_row
from sparselens.storage.schema import SCHEMA_VERSION, STORED, fingerprint
from sparselens.storage.shard import write_empty

STALE_AFTER = 60.0  # seconds without a heartbeat until a run counts as interrupted
EMPTY = Path("schema", f"v{SCHEMA_VERSION}-{fingerprint()}", "part-00000")


@dataclass(frozen=True)
class Run:
    """One run as it lies in the trace now."""

    folder: Path
    record: RunRecord
    status: str  # complete | running | interrupted

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.record.run_id

    @cached_property
    def folders(self) -> tuple[Path, ...]:
        """The folders that hold its rows, in order: those the manifest names, else every part."""
        if self.record.folders is not None:
            return tuple(self.folder / name for name in self.record.folders)
        return tuple(sorted(self.folder.glob("part-*")))

    @cached_property
    def parts(self) -> tuple[dict[str, Any], ...]:
        """What each of them holds: `prompt_ids`, `n_tokens`, `rows` of each table."""
        return tuple(_read_part(folder / "part.json") for folder in self.folders)

    def with_status(self, status: str) -> Run:
        """The same run seen with another status."""
        return self if status == self.status else Run(self.folder, self.record, status)

    @property
    def prompt_ids(self) -> tuple[str, ...]:
        """Complete prompts, in the order they were written."""
        return tuple(prompt for part in self.parts for prompt in part["prompt_ids"])

    @property
    def n_tokens(self) -> int:
        """Tokens of those prompts."""
        return sum(part["n_tokens"] for part in self.parts)


@dataclass(frozen=True)
class Trace:
    """A trace folder. `create` makes it or opens it, `open` wants it to be there."""

    path: Path

    @classmethod
    def create(cls, path: str | Path) -> Trace:
        """The trace in that folder, made if there is none; TraceError if that fails."""
        trace = cls(Path(path))
        if (trace.path / "trace.json").exists():
            return cls.open(path)
        if trace.path.exists() and not trace.path.is_dir():
            raise TraceError(f"cannot create a trace in {trace.path}: it is a file")
        strange = sorted(_names(trace.path) - {"runs", "schema", "trace.duckdb", "trace.json"})
        if strange:
            raise TraceError(f"{trace.path} is not a trace and not empty: it has {strange[0]}")
        with explained("create a trace in", trace.path):
            trace.runs_folder.mkdir(parents=True, exist_ok=True)
            trace._write_empty_shards()
            about = {"format": "sparselens-trace", "schema_version": SCHEMA_VERSION, "created_at": now()}
            write_whole(trace.path / "trace.json", (json.dumps(about, indent=1) + "\n").encode())
        return trace

    @classmethod
    def open(cls, path: str | Path) -> Trace:
        """The trace in that folder; TraceError if there is none or its schema is newer than this version."""
        trace = cls(Path(path))
        file = trace.path / "trace.json"
        if not file.exists():
            raise TraceError(f"{trace.path} is not a trace: it has no trace.json")
        with explained("read", file):
            about = json.loads(file.read_bytes())
        version = about.get("schema_version", 0) if isinstance(about, dict) else None
        if not isinstance(version, int):
            raise TraceError(f"{file} is broken: it does not say its schema version")
        _check_version(str(trace.path), version)
        trace._write_empty_shards()
        return trace

    @property
    def runs_folder(self) -> Path:
        """Where the runs lie."""
        return self.path / "runs"

    def _write_empty_shards(self) -> None:
        """The empty shards of this version, all or none; those of an older version go."""
        target = self.path / EMPTY
        if target.exists():
            return
        with explained("write the schema of", self.path):
            target.parent.mkdir(parents=True, exist_ok=True)
            write_run_row(target.parent, ())
            draft = temporary(target)
            draft.mkdir()
            for table in STORED.values():
                write_empty(table, draft / f"{table.name}.parquet")
            try:
                publish_folder(draft, target)
            except OSError:  # another process made them a moment ago
                if not target.exists():
                    raise
            for entry in target.parent.parent.iterdir():
                if entry.is_dir() and entry.name != target.parent.name:
                    remove_folder(entry)

    def run_folders(self) -> Iterator[Path]:
        """Folders of runs, by name."""
        if self.runs_folder.is_dir():
            for folder in sorted(self.runs_folder.iterdir()):
                if not folder.name.startswith(".") and (folder / "run.json").exists():
                    yield folder

    def runs(self) -> list[Run]:
        """All runs, oldest first."""
        found = [read_run(folder) for folder in self.run_folders()]
        return sorted(found, key=lambda run: (run.record.created_at, run.run_id))

    def run(self, name: str) -> Run:
        """The run of that id, else the newest of that name, else by the id's beginning; else TraceError."""
        runs = self.runs()
        by_name = [run for run in runs if run.record.name == name]
        by_prefix = [run for run in runs if run.run_id.startswith(name)] if name else []
        for found in ([run for run in runs if run.run_id == name], by_name[-1:], by_prefix):
            if len(found) == 1:
                return found[0]
        there = ", ".join(
            f"{run.record.name} ({run.run_id})" if run.record.name else run.run_id for run in runs
        )
        what = "matches several runs" if len(by_prefix) > 1 else "is not a run"
        raise TraceError(f"{name!r} {what} of {self.path}; it has {there or 'no runs'}")


def _names(folder: Path) -> set[str]:
    """Names in a folder that may not exist, unfinished files left out."""
    there = folder.iterdir() if folder.is_dir() else ()
    return {entry.name for entry in there if not entry.name.startswith(TEMPORARY)}


def _check_version(what: str, version: int) -> None:
    """Raise TraceError if something was written with a schema that this version does not know."""
    if version > SCHEMA_VERSION:
        known = f"this sparselens reads up to {SCHEMA_VERSION}: upgrade it"
        raise TraceError(f"{what} was written with schema {version}; {known}")


def read_run(folder: Path) -> Run:
    """The run in a folder, its status derived: manifest, else heartbeat."""
    with explained("read", folder):
        manifest = folder / "manifest.json"
        complete = manifest.exists()
        record = RunRecord.from_json((manifest if complete else folder / "run.json").read_bytes())
    _check_version(f"run {record.run_id}", record.schema_version)
    return Run(folder, record, "complete" if complete else heartbeat_status(read_heartbeat(folder)))


def _read_part(file: Path) -> dict[str, Any]:
    """What a part says it holds; TraceError if that is broken."""
    about = json.loads(file.read_bytes())
    kinds = {"prompt_ids": list, "n_tokens": int, "rows": dict}
    if not isinstance(about, dict) or any(
        not isinstance(about.get(name), kind) for name, kind in kinds.items()
    ):
        raise TraceError(f"{file} is broken: it does not say which rows there are")
    return about


def read_heartbeat(folder: Path) -> dict[str, Any]:
    """The last heartbeat of a run: `at` (s since 1970), `owner`, `stopped`, `seconds`; empty if none."""
    try:
        beat = json.loads((folder / "heartbeat.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return beat if isinstance(beat, dict) else {}


def heartbeat_status(beat: dict[str, Any]) -> str:
    """`running` while the heartbeat is fresh and its writer has not said that it stopped."""
    fresh = time.time() - float(beat.get("at", 0.0)) < STALE_AFTER
    return "running" if fresh and not beat.get("stopped", False) else "interrupted"
