"""A run as it is written: whole parts, refusals that leave nothing behind, resume, merge into large files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sparselens.storage.disk import TraceError
from sparselens.storage.manifest import RunRecord
from sparselens.storage.reader import connect
from sparselens.storage.schema import SCHEMA_VERSION
from sparselens.storage.trace import Run, Trace
from sparselens.storage.writer import RunWriter


def test_a_prompt_written_twice_is_refused(trace_path: Path, writing: Callable[..., Run]) -> None:
    writing(trace_path, ["p1"], finish=False, run_id="r")
    with RunWriter.resume(trace_path, "r") as run:
        with pytest.raises(ValueError, match="run r has prompt p1 already"):
            run.part(["p1"])
        with pytest.raises(ValueError, match="run r has prompt p2 already"):
            run.part(["p2", "p2"])


def test_an_error_in_a_part_leaves_nothing(trace_path: Path) -> None:
    run = RunWriter.start(trace_path, "r")
    before = sorted(run.folder.iterdir())
    part = run.part(["p1"])
    with pytest.raises(ValueError, match="no column nmae"), part:
        part.add("prompts", {"nmae": "y"})
    assert sorted(run.folder.iterdir()) == before
    assert run.finished_prompts() == set()
    run.interrupt()


def test_rows_of_another_prompt_or_run_are_refused(trace_path: Path) -> None:
    with RunWriter.start(trace_path, "r") as run, run.part(["p1"]) as part:
        with pytest.raises(ValueError, match=r"tokens.prompt_id has 'p9', which is not of this part"):
            part.add("tokens", {"prompt_id": "p9", "pos": 0, "is_special": False})
        with pytest.raises(ValueError, match=r"tokens.run_id has 'other'"):
            part.add("tokens", {"run_id": "other", "pos": 0, "is_special": False})
        with pytest.raises(ValueError, match="unknown table 'tokenz'"):
            part.add("tokenz", {})
        with pytest.raises(ValueError, match="runs is derived; rows go to"):
            part.add("runs", {})
    with pytest.raises(ValueError, match="inside `with run"):
        part.add("tokens", {"pos": 0, "is_special": False})


def test_a_finished_run_is_one_file_a_table(trace_path: Path, writing: Callable[..., Run]) -> None:
    run = writing(trace_path, ["p1", "p2", "p3"], name="base", verify_kernel=None)
    assert run.status == "complete"
    assert run.prompt_ids == ("p1", "p2", "p3")
    assert [folder.name for folder in run.folders] == ["part-merged-000-00000"]
    assert [p.name for p in run.folder.glob("part-*")] == ["part-merged-000-00000"]
    assert pq.read_metadata(run.folders[0] / "edges.parquet").num_rows == 3 * 60


def test_large_parts_are_left_as_they_are(
    trace_path: Path, writing: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparselens.storage.compact.LARGE", 1)
    run = writing(trace_path, ["p1", "p2"])
    assert [folder.name for folder in run.folders] == ["part-00000", "part-00001"]


def test_what_the_end_knows_is_in_the_manifest(trace_path: Path) -> None:
    with RunWriter.start(trace_path, meta={"name": "base", "seed": 7, "args": {"b": 1, "a": 2}}) as run:
        with pytest.raises(ValueError, match="a run has no field sed; it has name, kind"):
            run.finish({"sed": 1})
        run.finish({"verify_kernel": True, "verify_detail": {"max": 1e-6}})
    with connect(trace_path) as trace:
        row = trace.sql(
            "SELECT name, seed, args, status, verify_kernel, verify_logits, verify_detail FROM runs"
        ).rows[0]
    assert row == ("base", 7, '{"a": 2, "b": 1}', "complete", True, None, '{"max": 1e-06}')


def test_leaving_the_run_unfinished_interrupts_it(trace_path: Path, writing: Callable[..., Run]) -> None:
    run = writing(trace_path, ["p1"], finish=False, run_id="r")
    assert run.status == "interrupted"
    resumed = RunWriter.resume(trace_path, "r")
    assert Trace.open(trace_path).run("r").status == "running"
    with pytest.raises(TraceError, match="run r is running"):
        RunWriter.resume(trace_path, "r")
    resumed.finish()
    with pytest.raises(TraceError, match="run r is complete"):
        RunWriter.resume(trace_path, "r")


def test_a_writer_whose_run_was_taken_over_stops(trace_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = RunWriter.start(trace_path, "r")
    monkeypatch.setattr("sparselens.storage.trace.STALE_AFTER", -1.0)
    fast = RunWriter.resume(trace_path, "r")
    with pytest.raises(TraceError, match="taken over by another process"), slow.part(["p1"]) as part:
        part.add("prompts", {"name": "x", "n_tokens": 1})
    with fast.part(["p1"]) as part:
        part.add("prompts", {"name": "x", "n_tokens": 1})
    assert fast.finish().prompt_ids == ("p1",)
    slow.interrupt()


def test_an_id_is_taken_once(trace_path: Path) -> None:
    RunWriter.start(trace_path, "r").interrupt()
    with pytest.raises(TraceError, match="run r exists already"):
        RunWriter.start(trace_path, "r")
    with pytest.raises(ValueError, match="a run id has letters"):
        RunWriter.start(trace_path, "../r")
    assert [path.name for path in (trace_path / "runs").iterdir()] == ["r"]


def test_a_full_disk_is_said_in_one_line(trace_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunWriter.start(trace_path, "r")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        message = r"cannot write .*runs/r: No space left on device$"
        with pytest.raises(TraceError, match=message), run.part(["p1"]) as part:
            part.add("prompts", {"name": "x", "n_tokens": 1})
    assert Trace.open(trace_path).run("r").prompt_ids == ()
    with run.part(["p1"]) as part:
        part.add("prompts", {"name": "x", "n_tokens": 1})
    assert run.finish().prompt_ids == ("p1",)


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(TraceError, match=r"cannot create a trace in .*file: it is a file"):
        Trace.create(tmp_path / "file")
    with pytest.raises(TraceError, match="cannot create a trace in"):
        Trace.create(tmp_path / "file" / "below")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(TraceError, match=r"is not a trace and not empty: it has thesis.tex"):
        Trace.create(tmp_path / "other")
    with pytest.raises(TraceError, match=r"is not a trace: it has no trace.json"):
        connect(tmp_path / "other")
    with pytest.raises(TraceError, match="there is no such folder or file"):
        connect(tmp_path / "nowhere")


def test_a_newer_trace_is_refused_in_one_line(trace_path: Path, writing: Callable[..., Run]) -> None:
    run = writing(trace_path, ["p1"])
    about = json.loads((trace_path / "trace.json").read_text())
    manifest = json.loads((run.folder / "manifest.json").read_text())
    (run.folder / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 99}))
    with pytest.raises(
        TraceError,
        match=rf"run .* was written with schema 99; this sparselens reads up to {SCHEMA_VERSION}: upgrade it$",
    ):
        connect(trace_path)
    (trace_path / "trace.json").write_text(json.dumps(about | {"schema_version": 99}))
    with pytest.raises(TraceError, match="was written with schema 99"):
        Trace.create(trace_path)


def test_a_run_is_found_by_id_name_or_beginning(trace_path: Path, writing: Callable[..., Run]) -> None:
    writing(trace_path, [], name="base", run_id="abc1")
    writing(trace_path, [], name="base", run_id="abd2")
    trace = Trace.open(trace_path)
    assert trace.run("abc1").run_id == trace.run("abc").run_id == "abc1"
    assert trace.run("base").run_id == "abd2"
    with pytest.raises(
        TraceError, match=r"'ab' matches several runs of .*; it has base \(abc1\), base \(abd2\)"
    ):
        trace.run("ab")
    with pytest.raises(TraceError, match="'x' is not a run of"):
        trace.run("x")


def test_a_record_comes_back_from_json() -> None:
    record = RunRecord.of(
        "r", {"parents": ["a"], "seconds": 2, "args": {"x": [1, None]}, "policy": "dense()"}
    )
    assert RunRecord.from_json(record.to_json()) == record
    assert record.parents == ("a",)
    assert record.packages["python"].startswith("3.")
    with pytest.raises(ValueError, match="run field seed must be"):
        RunRecord.of("r", {"seed": "three"})
    with pytest.raises(ValueError, match="must be JSON"):
        RunRecord.of("r", {"args": {"x": object()}})
