"""Notes on runs: the newest is shown, all are kept, and they cannot be about nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pytest

from sparselens.storage.disk import TraceError
from sparselens.storage.notes import LONGEST, note
from sparselens.storage.pack import pack
from sparselens.storage.reader import connect
from sparselens.storage.writer import RunWriter
from sparselens.workbench import cli


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    with RunWriter.start(tmp_path / "trace", "run-1", {"name": "window"}) as writer:
        writer.finish()
    return tmp_path / "trace"


def said(trace: Path, view: str = "notes") -> list[Any]:
    with connect(trace) as opened:
        return list(opened.sql(f"SELECT run_id, text FROM {view} ORDER BY written_at").rows)


def test_the_newest_note_is_shown_and_no_other_is_lost(trace: Path) -> None:
    note(trace, "window", "  looks <b>odd</b>\nsee L18H6 ")
    note(trace, "run-1", "explained")
    assert said(trace) == [("run-1", "explained")]
    assert said(trace, "notes_history") == [("run-1", "looks <b>odd</b>\nsee L18H6"), ("run-1", "explained")]
    note(trace, "run-1", " ")
    assert said(trace) == [("run-1", None)]


def test_a_note_is_about_a_run_and_not_endless(trace: Path) -> None:
    with pytest.raises(TraceError, match="is not a run"):
        note(trace, "another", "x")
    with pytest.raises(ValueError, match=r"up to 4,000 characters, this one has 4,001"):
        note(trace, "run-1", "x" * (LONGEST + 1))
    assert said(trace, "notes_history") == []
    note(trace, "run-1", "x")
    with connect(trace) as opened:
        writer = opened.sql("SELECT analysis_id FROM notes").rows[0][0]
    with pytest.raises(ValueError, match="is a note"):
        note(trace, writer, "x")


def test_the_command_writes_it_show_prints_it_and_ls_lists_runs_alone(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def printed(*words: str) -> str:
        assert cli.main([*words, "--trace", str(trace)]) == 0
        return capsys.readouterr().out

    assert printed("note", "window", "seen") == "noted on window\n"
    assert "seen" in printed("show", "window")
    assert len(printed("ls").splitlines()) == 2
    assert printed("note", "window", "") == "took back the note on window\n"
    assert cli.main(["note", "window", "x" * 4_001, "--trace", str(trace)]) != 0
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_trace_that_is_shared_without_text_has_no_notes(trace: Path, tmp_path: Path) -> None:
    note(trace, "run-1", "the prompt says 7421")
    pack(trace, tmp_path / "shared.duckdb", strip_text=True)
    with duckdb.connect(str(tmp_path / "shared.duckdb"), read_only=True) as opened:
        assert opened.sql("SELECT run_id, text FROM notes").fetchall() == [("run-1", None)]
