"""SQL access: parameters cannot break out, every failure is one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparselens.dashboards.query import Source, SourceError, bound, literal
from sparselens.storage import reader


@pytest.fixture(scope="module")
def source(trace: Path) -> Source:
    return Source(trace)


def test_a_parameter_is_a_value_whatever_it_contains(source: Source) -> None:
    for text in ("'", "a' OR 1=1 --", "\\", "$b", "東京", "x\ny"):
        assert source.first("SELECT $a AS a", a=text) == {"a": text}
    assert source.records("SELECT * FROM runs WHERE run_id = $a", a="x' OR '1'='1") == []


@given(st.text(max_size=40).filter(lambda text: "\0" not in text))
def test_a_literal_in_a_sample_query_is_the_same_text(text: str) -> None:
    assert literal(text)[1:-1].replace("''", "'") == text
    assert "'" not in literal(text)[1:-1].replace("''", "")


def test_a_query_that_names_an_unknown_parameter_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\$b; given are a"):
        bound("SELECT $a, $b", {"a": 1})


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT",
        "SELECT * FROM nowhere",
        "COPY runs TO 'x'",
        "ATTACH 'x.duckdb'",
        "INSTALL httpfs",
        "PRAGMA database_list",
        "SET memory_limit = '1TB'",
        "SELECT 1; SELECT 2",
        "SELECT * FROM read_csv('/etc/passwd')",
        "WITH x AS (COPY runs TO 'f') SELECT * FROM x",
    ],
)
def test_what_fails_fails_in_one_line(source: Source, sql: str) -> None:
    with pytest.raises(SourceError) as caught:
        source.run(sql)
    assert "\n" not in str(caught.value)


def test_an_endless_recursion_is_stopped_and_a_huge_result_is_cut(source: Source) -> None:
    endless = "WITH RECURSIVE x AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM x) SELECT max(n) FROM x"
    with pytest.raises(SourceError, match="stopped"):
        source.run(endless, timeout=0.5)
    assert source.run("SELECT * FROM range(10_000_000)", max_rows=100).truncated


def test_a_missing_trace_says_which_command_fills_it(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        Source(tmp_path / "none").frame("SELECT 1")
    assert caught.value.advice.startswith("sparselens capture")
    assert str(tmp_path / "none") in caught.value.advice


def test_a_newer_schema_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "trace.json").write_text(json.dumps({"format": "sparselens-trace", "schema_version": 999}))
    with pytest.raises(SourceError, match="999"):
        Source(tmp_path).frame("SELECT 1")


def test_nan_and_infinity_become_none(source: Source) -> None:
    row = source.first("SELECT 'nan'::DOUBLE AS a, 'inf'::DOUBLE AS b, NULL AS c, 1.5 AS d")
    assert row == {"a": None, "b": None, "c": None, "d": 1.5}


def test_a_run_that_appears_is_seen_without_a_new_source(tmp_path: Path) -> None:
    from sparselens.storage.writer import RunWriter

    path = tmp_path / "live"
    RunWriter.start(path, "first", {"policy": "dense()"}).finish({})
    source = Source(path)
    assert len(source.records("SELECT run_id FROM runs")) == 1
    RunWriter.start(path, "second", {"policy": "dense()"}).finish({})
    assert len(source.records("SELECT run_id FROM runs")) == 2


def test_an_answer_is_of_one_state_and_the_next_look_sees_more(tmp_path: Path) -> None:
    from sparselens.storage.writer import RunWriter

    path = tmp_path / "live"
    RunWriter.start(path, "first", {"policy": "dense()"}).finish({})
    source = Source(path, follow=False)
    assert len(source.records("SELECT run_id FROM runs")) == 1
    before = source.state()
    RunWriter.start(path, "second", {"policy": "dense()"}).finish({})
    assert len(source.records("SELECT run_id, name FROM runs")) == 1
    assert source.state() == before
    source.look()
    assert len(source.records("SELECT run_id FROM runs")) == 2
    assert source.state() != before
    shutil.rmtree(path / "runs" / "second")
    source.look()
    assert len(source.records("SELECT run_id FROM runs")) == 1


def test_parts_that_are_merged_away_are_read_where_they_went(tmp_path: Path) -> None:
    """A capture that ends puts its parts into one; what was looked at before names files that are gone."""
    from sparselens.storage.writer import RunWriter

    run = RunWriter.start(tmp_path / "t", "one", {"policy": "dense()"})
    for number in range(3):
        with run.part([f"p{number}"]) as part:
            part.add("prompts", {"name": f"{number}", "prompt_set": "x", "grp": "", "n_tokens": 1})
    source = Source(tmp_path / "t", follow=False)
    assert source.first("SELECT count(*) AS n FROM prompts") == {"n": 3}
    run.finish({})
    assert source.first("SELECT count(*) AS n, min(name) AS least FROM prompts") == {"n": 3, "least": "0"}


def test_a_missing_trace_is_no_error_to_look_at(tmp_path: Path) -> None:
    Source(tmp_path / "none", follow=False).look()


def test_a_broken_shard_is_one_line(trace: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(trace, tmp_path / "broken")
    for shard in copy.glob("runs/run-2-*/*/edges.parquet"):
        shard.write_bytes(shard.read_bytes()[:100])
    source = Source(copy)
    with pytest.raises(SourceError) as caught:
        source.frame("SELECT count(*) FROM edges")
    assert "\n" not in str(caught.value)
    assert source.first("SELECT count(*) AS n FROM runs") == {"n": 3}


def test_the_door_is_the_only_way(source: Source) -> None:
    assert isinstance(source._connection(), reader.Connection)
