"""Notes on runs: each is written as a run of its own, so none is ever lost; the view `notes` shows the newest."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from sparselens.storage.trace import Run, Trace
from sparselens.storage.writer import RunWriter

KIND = "note"
LONGEST = 4_000  # characters


def note(trace: Trace | str | Path, run: str, text: str) -> Run:
    """Write a note on a run, in place of the one it had; an empty text takes that back. Returns the run noted on.

    `run` is an id, its beginning, or a name. Raises TraceError where there is no such run or the trace cannot
    be written, ValueError where the text is longer than `LONGEST` characters or the run is a note itself.
    """
    trace = trace if isinstance(trace, Trace) else Trace.open(trace)
    about, said = trace.run(run), text.strip()
    if len(said) > LONGEST:
        raise ValueError(f"a note has up to {LONGEST:,} characters, this one has {len(said):,}")
    if about.record.kind == KIND:
        raise ValueError(f"{about.run_id} is a note: give the run that it is about")
    with RunWriter.start(trace, meta={"kind": KIND, "parents": [about.run_id]}) as writer:
        with writer.part([]) as part:
            written = datetime.now(UTC).replace(tzinfo=None)
            part.add("notes", {"run_id": [about.run_id], "text": [said or None], "written_at": [written]})
        writer.finish()
    return about
