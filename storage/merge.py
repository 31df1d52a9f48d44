"""Taking the runs of another trace (another machine's) into this one."""

from __future__ import annotations

import shutil
from pathlib import Path

from sparselens.storage.disk import TEMPORARY, TraceError, explained, publish_folder, sync, temporary
from sparselens.storage.trace import Run, Trace


def merge(source: Trace | str | Path, into: Trace | str | Path) -> list[str]:
    """Copy every run of `source` that `into` does not have; returns the ids of those copied.

    Each run appears whole or not at all; doing it again copies what is new. TraceError if a run is
    still being written, or if one id stands for two different runs.
    """
    source = source if isinstance(source, Trace) else Trace.open(source)
    into = into if isinstance(into, Trace) else Trace.create(into)
    there = {run.run_id: run for run in into.runs()}
    arriving = [run for run in source.runs() if not _same(run, there.get(run.run_id))]
    for run in arriving:
        if run.status == "running":
            raise TraceError(
                f"run {run.run_id} of {source.path} is still being written: merge when it is complete"
            )
    for run in arriving:
        with explained("copy a run into", into.path):
            _copy(run, into.runs_folder / run.run_id)
    return [run.run_id for run in arriving]


def _same(run: Run, there: Run | None) -> bool:
    """Whether a run is there already; TraceError if its id stands for another one."""
    if there is None:
        return False
    if there.record.created_at != run.record.created_at or there.prompt_ids != run.prompt_ids:
        raise TraceError(f"run {run.run_id} is in both traces and differs: remove one of them")
    return True


def _copy(run: Run, target: Path) -> None:
    """Copy one run's folder, its unfinished files left out."""
    draft = temporary(target)
    try:
        shutil.copytree(run.folder, draft, ignore=shutil.ignore_patterns(f"{TEMPORARY}*"))
        for file in draft.rglob("*"):
            sync(file)
        publish_folder(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
