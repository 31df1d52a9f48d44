"""What the views show: the newest complete results, prompts once, running captures as they grow."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from sparselens.storage.merge import merge
from sparselens.storage.pack import pack
from sparselens.storage.reader import Connection, connect
from sparselens.storage.schema import PUBLIC
from sparselens.storage.trace import Run, Trace
from sparselens.storage.writer import RunWriter

PROMPT = {"name": "x", "n_tokens": 1}
HEAD = {"scope": "end_to_end", "layer": 0, "head": 0, "n_rows": 1}


def analysis(path: Path, run_id: str, value: float, *, finish: bool = True, **meta: Any) -> None:
    """An analysis of run `base` that found `value`."""
    fields = {"kind": "analysis", "name": "roles", "parents": ["base"], "args": {"length": 10}} | meta
    with RunWriter.start(path, run_id, fields) as run:
        with run.part([]) as part:
            part.add(
                "head_scores",
                {"run_id": "base", "layer": 0, "head": 0, "metric": "induction", "value": value},
            )
        if finish:
            run.finish()


def diff(path: Path, run_id: str, value: float, **meta: Any) -> None:
    """A run that compared base and sparse."""
    with RunWriter.start(path, run_id, meta) as run:
        with run.part(["p1"]) as part:
            part.add("prompts", PROMPT)
            part.add(
                "diffs", HEAD | {"run_a": "base", "run_b": "sparse", "rows": "all", "write_error": value}
            )
        run.finish()


def test_the_newest_complete_result_of_equal_args_is_shown(trace_path: Path) -> None:
    analysis(trace_path, "a1", 0.1)
    with connect(trace_path) as trace:
        analysis(trace_path, "a2", 0.2)
        analysis(trace_path, "a3", 0.3, finish=False)
        assert trace.sql("SELECT value, analysis_id FROM head_scores").rows == [(0.2, "a2")]
        analysis(trace_path, "a4", 0.4, args={"length": 20})
        analysis(trace_path, "a5", 0.5, name="sinks")
        shown = trace.sql("SELECT value FROM head_scores ORDER BY 1").rows
        assert shown == [(0.2,), (0.4,), (0.5,)]
        assert len(trace.sql("SELECT * FROM head_scores_history")) == 5


def test_a_paired_captures_diff_comes_before_a_later_one(trace_path: Path) -> None:
    diff(trace_path, "sparse", 0.5, kind="capture", parents=["base"])
    diff(trace_path, "d1", 0.1, kind="diff", parents=["base", "sparse"])
    with connect(trace_path) as trace:
        assert trace.sql("SELECT analysis_id FROM diffs").rows == [("sparse",)]
        assert len(trace.sql("SELECT * FROM diffs_history")) == 2


def test_a_later_diff_of_other_rows_is_shown_beside(trace_path: Path) -> None:
    diff(trace_path, "sparse", 0.5, kind="capture")
    with RunWriter.start(trace_path, "d1", {"kind": "diff"}) as run:
        with run.part(["p1"]) as part:
            part.add("diffs", HEAD | {"run_a": "base", "run_b": "sparse", "rows": "span:needle"})
        run.finish()
    with connect(trace_path) as trace:
        shown = trace.sql("SELECT rows, analysis_id FROM diffs ORDER BY rows").rows
    assert shown == [("all", "sparse"), ("span:needle", "d1")]


def test_a_prompt_of_two_runs_is_there_once(trace_path: Path, writing: Callable[..., Run]) -> None:
    writing(trace_path, ["p1", "p2"])
    writing(trace_path, ["p1", "p2", "p3"])
    with connect(trace_path) as trace:
        assert trace.sql("SELECT count(*), count(DISTINCT prompt_id) FROM prompts").rows == [(3, 3)]
        assert trace.sql("SELECT count(*) FROM tokens").rows == [(15,)]
        assert trace.sql("SELECT count(*) FROM spans").rows == [(6,)]
        assert trace.sql("SELECT count(*) FROM edges").rows == [(5 * 60,)]
        assert len(trace.sql("SELECT * FROM run_prompts")) == 5


def test_views_follow_a_running_capture(trace_path: Path) -> None:
    Trace.create(trace_path)
    with connect(trace_path) as trace:
        assert trace.sql("SELECT * FROM runs").rows == []
        run = RunWriter.start(trace_path, "r")
        assert trace.sql("SELECT run_id, status, n_prompts FROM runs").rows == [("r", "running", 0)]
        with run.part(["p1"]) as part:
            part.add("prompts", PROMPT)
            assert trace.sql("SELECT count(*) FROM prompts").rows == [(0,)]
        assert trace.sql("SELECT count(*) FROM prompts").rows == [(1,)]
        assert trace.sql("SELECT n_prompts, n_tokens FROM runs").rows == [(1, 1)]
        run.interrupt()
        assert trace.sql("SELECT status FROM runs").rows == [("interrupted",)]


def test_a_stale_heartbeat_is_an_interrupted_run(trace_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunWriter.start(trace_path, "r")
    with connect(trace_path) as trace:
        monkeypatch.setattr("sparselens.storage.trace.STALE_AFTER", -1.0)
        assert trace.sql("SELECT status FROM runs").rows == [("interrupted",)]
    run.interrupt()


def everything(query: Callable[[str], list[tuple[Any, ...]]]) -> dict[str, list[tuple[Any, ...]]]:
    return {name: query(f"SELECT * FROM {name} ORDER BY ALL") for name in PUBLIC}


def of(trace: Connection) -> Callable[[str], list[tuple[Any, ...]]]:
    return lambda text: trace.sql(text).rows


def test_other_clients_see_the_same_through_trace_duckdb(
    trace_path: Path, writing: Callable[..., Run]
) -> None:
    writing(trace_path, ["p1", "p2"], name="base")
    analysis(trace_path, "a1", 0.1)
    analysis(trace_path, "a2", 0.2)
    writing(trace_path, ["p3"], finish=False)
    with connect(trace_path) as trace:
        here = everything(of(trace))
    (trace_path / "trace.duckdb.wal").write_bytes(b"left by somebody")
    connect(trace_path).close()
    assert not (trace_path / "trace.duckdb.wal").exists()
    with duckdb.connect(str(trace_path / "trace.duckdb"), read_only=True) as client:
        client.execute("SET file_search_path = $path", {"path": str(trace_path)})
        there = everything(lambda text: client.execute(text).fetchall())
        comment = client.execute("SELECT comment FROM duckdb_columns() WHERE column_name = 'lse'").fetchall()
    assert there == here
    assert comment[0][0].startswith("[nats] ln Σ exp")


def test_a_packed_trace_has_the_same_rows_in_one_file(trace_path: Path, writing: Callable[..., Run]) -> None:
    writing(trace_path, ["p1", "p2"], name="base")
    analysis(trace_path, "a1", 0.1)
    packed = pack(trace_path, trace_path.parent / "one.duckdb")
    with connect(trace_path) as trace, connect(packed) as file:
        assert everything(of(file)) == everything(of(trace))
    with duckdb.connect(str(packed), read_only=True) as client:
        kinds = client.execute("SELECT DISTINCT table_type FROM information_schema.tables").fetchall()
    assert kinds == [("BASE TABLE",)]
    with pytest.raises(ValueError, match="exists already"):
        pack(trace_path, packed)


def test_a_stripped_pack_has_no_words(trace_path: Path, writing: Callable[..., Run]) -> None:
    writing(trace_path, ["p1"], name="base")
    with connect(pack(trace_path, trace_path.parent / "one.duckdb", strip_text=True)) as file:
        assert file.sql("SELECT DISTINCT token_id, text FROM tokens").rows == [(None, None)]
        assert file.sql("SELECT name, metadata, answer_ids FROM prompts").rows == [(None, None, None)]
        assert file.sql("SELECT count(*) FROM edges").rows == [(60,)]


def test_merging_takes_over_the_other_machines_runs(tmp_path: Path, writing: Callable[..., Run]) -> None:
    writing(tmp_path / "a", ["p1"], run_id="ra")
    writing(tmp_path / "b", ["p1", "p2"], run_id="rb")
    with connect(tmp_path / "a") as trace:
        assert merge(tmp_path / "b", tmp_path / "a") == ["rb"]
        assert merge(tmp_path / "b", tmp_path / "a") == []
        assert trace.sql("SELECT run_id, n_prompts FROM runs ORDER BY 1").rows == [("ra", 1), ("rb", 2)]
        assert trace.sql("SELECT count(*) FROM edges").rows == [(180,)]
    writing(tmp_path / "c", ["p9"], run_id="ra")
    with pytest.raises(ValueError, match="run ra is in both traces and differs"):
        merge(tmp_path / "c", tmp_path / "a")


_WRITER = """
import sys
from sparselens.storage.writer import RunWriter
path, run_id, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
with RunWriter.start(path, run_id) as run:
    for i in range(n):
        with run.part([f"p{i}"]) as part:
            part.add("prompts", {"name": "x", "n_tokens": 4})
            part.add("tokens", {"pos": range(4), "is_special": False})
    run.finish()
"""


def test_two_writers_and_a_reader_share_a_trace(trace_path: Path) -> None:
    n = 12
    Trace.create(trace_path)
    arguments = [sys.executable, "-c", _WRITER, str(trace_path)]
    writers = [subprocess.Popen([*arguments, run, str(n)], cwd=trace_path.parent) for run in ("a", "b")]
    seen = 0
    with connect(trace_path) as trace:
        while any(writer.poll() is None for writer in writers):
            prompts, tokens = trace.sql(
                "SELECT (SELECT count(*) FROM run_prompts), (SELECT count(*) FROM tokens)"
            ).rows[0]
            per_run = trace.sql(
                "SELECT coalesce(max(n), 0) FROM (SELECT count(*) n FROM run_prompts GROUP BY run_id)"
            )
            assert prompts >= seen
            assert tokens % 4 == 0
            assert per_run.rows[0][0] <= n
            seen = prompts
        assert [writer.returncode for writer in writers] == [0, 0]
        assert trace.sql("SELECT run_id, count(*) FROM run_prompts GROUP BY 1 ORDER BY 1").rows == [
            ("a", n),
            ("b", n),
        ]
        assert trace.sql("SELECT count(*) FROM tokens").rows == [(4 * n,)]
        assert trace.sql("SELECT DISTINCT status FROM runs").rows == [("complete",)]
