"""Writing a run: parts that are there whole or not at all, a heartbeat, a manifest, then large files."""

from __future__ import annotations

import json
import secrets
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sparselens.storage.compact import compact
from sparselens.storage.disk import (
    TEMPORARY,
    TraceError,
    explained,
    publish_folder,
    temporary,
    write_whole,
)
from sparselens.storage.manifest import RunRecord, now
from sparselens.storage.part import Part
from sparselens.storage.rows import Coded
from sparselens.storage.run_row import write_run_row
from sparselens.storage.trace import Run, Trace, read_heartbeat, read_run

__all__ = ["Coded", "Part", "RunWriter", "new_run_id"]

BEAT_EVERY = 5.0  # seconds


def new_run_id() -> str:
    """An id that sorts by time and no other machine makes: `20261121T224501-9f3a1c22`."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"


class RunWriter:
    """One run being written, by one process. As a context it interrupts the run if it is left unfinished."""

    def __init__(self, trace: Trace, run: Run, *, owner: str, seconds: float) -> None:
        self.trace, self.folder, self.record = trace, run.folder, run.record
        self.owner = owner
        self._finished = set(run.prompt_ids)
        self._started = time.monotonic() - seconds
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._beating = threading.Thread(target=self._beat, name=f"heartbeat {self.run_id}", daemon=True)
        self._beating.start()

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.record.run_id

    @classmethod
    def start(
        cls, trace: Trace | str | Path, run_id: str | None = None, meta: Mapping[str, Any] | None = None
    ) -> RunWriter:
        """Begin a run: `run.json` and a heartbeat are there when this returns.

        `meta` has the fields of `RunRecord`. TraceError if the id is taken or the folder cannot be written,
        ValueError on an unknown field.
        """
        trace = trace if isinstance(trace, Trace) else Trace.create(trace)
        record = RunRecord.of(run_id or new_run_id(), meta or {})
        if (
            not record.run_id.replace("-", "").replace("_", "").replace(".", "").isalnum()
            or record.run_id[0] in "._"
        ):
            raise ValueError(f"a run id has letters, digits, - _ . only, not {record.run_id!r}")
        folder = trace.runs_folder / record.run_id
        owner = secrets.token_hex(8)
        draft = temporary(folder)
        with explained("start a run in", trace.path):
            draft.mkdir(parents=True)
            write_whole(draft / "run.json", record.to_json())
            write_run_row(draft, [Run(draft, record, "running")])
            _write_heartbeat(draft, owner, 0.0)
            try:
                publish_folder(draft, folder)
            except FileExistsError as error:
                shutil.rmtree(draft, ignore_errors=True)
                raise TraceError(f"run {record.run_id} exists already in {trace.path}") from error
        return cls(trace, read_run(folder), owner=owner, seconds=0.0)

    @classmethod
    def resume(cls, trace: Trace | str | Path, run_id: str) -> RunWriter:
        """Go on with an interrupted run; TraceError if it is complete or another process writes it."""
        trace = trace if isinstance(trace, Trace) else Trace.open(trace)
        run = trace.run(run_id)
        if run.status != "interrupted":
            raise TraceError(f"run {run.run_id} is {run.status}: nothing to resume")
        beat = read_heartbeat(run.folder)
        owner = secrets.token_hex(8)
        with explained("resume a run in", run.folder):
            _write_heartbeat(run.folder, owner, float(beat.get("seconds", 0.0)))
            for leftover in [*run.folder.glob(f"{TEMPORARY}*"), *run.folder.glob("part-summary*")]:
                if leftover.is_dir():
                    shutil.rmtree(leftover)
                else:
                    leftover.unlink(missing_ok=True)
        return cls(trace, read_run(run.folder), owner=owner, seconds=float(beat.get("seconds", 0.0)))

    def finished_prompts(self) -> set[str]:
        """Prompts that are in the trace with all their rows."""
        return set(self._finished)

    def part(self, prompt_ids: Sequence[str]) -> Part:
        """A context that takes the rows of these prompts; left without error, they are in the trace.

        With no prompts it takes rows that belong to none or to those of other runs (scores, evaluations); a
        resumed run writes them anew.
        ValueError if a prompt is in the run already.
        """
        again = sorted(self._finished.intersection(prompt_ids))
        if again or len(set(prompt_ids)) != len(prompt_ids):
            raise ValueError(f"run {self.run_id} has prompt {(again or list(prompt_ids))[0]} already")
        return Part(self.folder, self.record, tuple(prompt_ids), committed=self._committed, owned=self._own)

    def _committed(self, prompt_ids: Sequence[str]) -> None:
        self._finished.update(prompt_ids)
        self.heartbeat()

    def _own(self) -> None:
        """Raise if another process has taken this run over."""
        beat = read_heartbeat(self.folder)
        if beat.get("owner") != self.owner:
            self._stop.set()
            raise TraceError(f"run {self.run_id} was taken over by another process")

    def heartbeat(self) -> None:
        """Say that the run is being written; called by a thread every few seconds as well."""
        with self._lock:
            if not self._stop.is_set():
                _write_heartbeat(self.folder, self.owner, time.monotonic() - self._started)

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_EVERY):
            try:
                if read_heartbeat(self.folder).get("owner") != self.owner:
                    return
                self.heartbeat()
            except OSError:  # a full disk: the parts will say so
                continue

    def interrupt(self) -> None:
        """Stop without finishing: what is complete stays readable and the run can be resumed at once."""
        with self._lock:
            if not self._stop.is_set():
                self._stop.set()
                with explained("write", self.folder):
                    _write_heartbeat(self.folder, self.owner, time.monotonic() - self._started, stopped=True)
        self._beating.join(timeout=1.0)

    def finish(self, extra: Mapping[str, Any] | None = None) -> Run:
        """Write the manifest (the run is complete from here), then merge the parts into large files.

        `extra` has fields of `RunRecord` known only at the end: verify_*, dense_call_share, extra …
        """
        self._own()
        seconds = time.monotonic() - self._started
        record = self.record.updated({"seconds": seconds, **(extra or {}), "finished_at": now()})
        folders = tuple(folder.name for folder in read_run(self.folder).folders)
        self.record = record.with_folders(folders)
        with explained("finish a run in", self.folder):
            write_whole(self.folder / "manifest.json", self.record.to_json())
            write_run_row(self.folder, [read_run(self.folder)])
        self._stop.set()
        self._beating.join(timeout=1.0)
        with explained("merge the parts of", self.folder):
            return compact(self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if (self.folder / "manifest.json").exists():
            return
        with suppress(TraceError) if kind else nullcontext():  # the first error is the one to see
            self.interrupt()


def _write_heartbeat(folder: Path, owner: str, seconds: float, *, stopped: bool = False) -> None:
    beat = {"at": time.time(), "owner": owner, "stopped": stopped, "seconds": round(seconds, 3)}
    write_whole(folder / "heartbeat.json", json.dumps(beat).encode(), durable=False)
