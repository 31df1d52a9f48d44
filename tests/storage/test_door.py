"""Every door: one reading statement, within its caps; everything else is refused in one line."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sparselens.storage.pack import pack
from sparselens.storage.reader import Connection, SqlError, connect
from sparselens.storage.trace import Run

REFUSED = [
    "COPY (SELECT 1) TO '{trace}/x.csv'",
    "COPY edges FROM '{trace}/x.csv'",
    "ATTACH '{trace}/x.duckdb'",
    "DETACH memory",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET threads = 1",
    "RESET threads",
    "PRAGMA database_size",
    "CALL pragma_version()",
    "CREATE TABLE t AS SELECT 1",
    "CREATE OR REPLACE VIEW edges AS SELECT 1",
    "INSERT INTO stored.runs SELECT * FROM stored.runs",
    "DROP VIEW edges",
    "DELETE FROM stored.runs",
    "UPDATE stored.runs SET name = 'x'",
    "EXPORT DATABASE '{trace}/x'",
    "CHECKPOINT",
    "VACUUM",
    "BEGIN",
    "USE stored",
    "PREPARE q AS SELECT 1",
    "SELECT 1; SELECT 2",
    "SELECT 1; COPY (SELECT 1) TO '{trace}/x.csv'",
    "",
    "-- nothing",
    "WITH x AS (INSERT INTO stored.runs SELECT * FROM stored.runs RETURNING *) SELECT * FROM x",
    "WITH x AS (DELETE FROM stored.runs RETURNING *) SELECT * FROM x",
    "WITH x AS (UPDATE stored.runs SET name = 'x' RETURNING *) SELECT * FROM x",
    "WITH x AS (COPY (SELECT 1) TO '{trace}/x.csv') SELECT * FROM x",
    "SELECT * FROM (WITH x AS (COPY (SELECT 1) TO '{trace}/x.csv') SELECT * FROM x)",
    "SELECT (WITH x AS (COPY (SELECT 1) TO '{trace}/x.csv') SELECT count(*) FROM x)",
    "EXPLAIN COPY (SELECT 1) TO '{trace}/x.csv'",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{trace}/x.csv'",
    "EXPLAIN (ANALYZE) COPY (SELECT 1) TO '{trace}/x.csv'",
    "/* a */ EXPLAIN ANALYZE -- b\n COPY (SELECT 1) TO '{trace}/x.csv'",
    "EXPLAIN ANALYZE WITH x AS (COPY (SELECT 1) TO '{trace}/x.csv') SELECT * FROM x",
    "EXPLAIN ANALYZE CREATE TABLE t AS SELECT 1",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_blob('/etc/passwd')",
    "SELECT * FROM read_parquet('/etc/passwd')",
    "SELECT * FROM read_json('/etc/passwd')",
    "SELECT * FROM sniff_csv('/etc/passwd')",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM 'x.parquet'",
    "SELECT (SELECT max(content) FROM read_text('/etc/passwd'))",
    "SELECT * FROM read_text('{trace}/trace.json')",
    "SELECT * FROM query('SELECT 1')",
    "SELECT * FROM duckdb_settings()",
    "SELECT * FROM duckdb_secrets()",
    "SELECT getenv('HOME')",
    "SELECT repeat('x', 1000000000)",
    "SELECT * FROM no_such_view",
    "SELEC 1",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("door")


@pytest.fixture(params=["folder", "packed"])
def door(request: pytest.FixtureRequest, folder: Path, writing: Callable[..., Run]) -> Iterator[Connection]:
    if not (folder / "trace").exists():
        writing(folder / "trace", ["p1"])
        pack(folder / "trace", folder / "packed.duckdb")
    path = folder / ("trace" if request.param == "folder" else "packed.duckdb")
    with connect(path, memory="300MB", threads=2) as connection:
        yield connection


def listing(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_size) for path in folder.rglob("*"))


def test_what_is_not_reading_is_refused_in_one_line(door: Connection, folder: Path) -> None:
    before = listing(folder)
    for text in REFUSED:
        with pytest.raises(SqlError) as refusal:
            door.sql(text.replace("{trace}", str(folder / "trace")))
        assert str(refusal.value), text
        assert "\n" not in str(refusal.value), text
    assert listing(folder) == before
    assert door.sql("SELECT count(*) FROM runs").rows == [(1,)]


def test_a_local_variable_is_not_a_table(door: Connection) -> None:
    secret = door.sql("SELECT 1 AS a").arrow()
    assert secret.num_rows == 1
    with pytest.raises(SqlError, match="secret does not exist"):
        door.sql("SELECT * FROM secret")


@pytest.mark.parametrize(
    "text",
    [
        "SELECT layer, head, avg(p) FROM edges GROUP BY ALL ORDER BY ALL",
        "FROM edges LIMIT 3",
        "WITH x AS (SELECT * FROM edges) SELECT count(*) FROM x JOIN tokens USING (prompt_id)",
        "WITH RECURSIVE r AS (SELECT 1 AS a UNION ALL SELECT a + 1 FROM r WHERE a < 5) SELECT * FROM r",
        "VALUES (1), (2)",
        "SELECT * FROM range(3)",
        "SELECT unnest([1, 2, 3])",
        "DESCRIBE edges",
        "SUMMARIZE head_stats",
        "SHOW TABLES",
        "EXPLAIN SELECT * FROM edges",
        "EXPLAIN ANALYZE SELECT count(*) FROM edges",
        "-- a comment\nSELECT 1;",
        "SELECT column_name FROM information_schema.columns WHERE table_name = 'edges'",
        "SELECT head, row_number() OVER (ORDER BY p) FROM edges QUALIFY row_number() OVER (ORDER BY p) = 1",
    ],
)
def test_reading_works(door: Connection, text: str) -> None:
    assert len(door.sql(text)) > 0


def test_a_result_is_rows_columns_frame_and_arrow(door: Connection) -> None:
    result = door.sql("SELECT 'a' AS x, 2::UTINYINT AS y UNION ALL SELECT 'b', NULL ORDER BY x")
    assert result.columns == ["x", "y"]
    assert result.types == ["VARCHAR", "UTINYINT"]
    assert result.rows == [("a", 2), ("b", None)]
    assert list(result.df()["x"]) == ["a", "b"]
    assert result.arrow().num_rows == len(result) == 2
    assert not result.truncated
    assert result.elapsed < 5


def test_parameters_are_bound_not_pasted(door: Connection) -> None:
    assert door.sql("SELECT $a || 'x' AS t", {"a": "'; DROP TABLE runs"}).rows == [("'; DROP TABLE runsx",)]
    assert door.sql("SELECT ? + ?", [1, 2]).rows == [(3,)]
    with pytest.raises(SqlError, match=r"(?i)parameter|values"):
        door.sql("SELECT ? + ?", [1])


def test_rows_beyond_the_cap_are_cut_and_it_says_so(door: Connection) -> None:
    result = door.sql("SELECT * FROM range(100000000000)", max_rows=10)
    assert [row[0] for row in result.rows] == list(range(10))
    assert result.truncated
    assert not door.sql("SELECT * FROM range(10)", max_rows=10).truncated
    assert door.sql("SELECT range, 'x' || range FROM range(100000000000)", max_bytes=100_000).truncated


def test_an_endless_recursion_is_stopped_in_time(door: Connection) -> None:
    started = time.monotonic()
    with pytest.raises(SqlError, match=r"stopped after 0\.3 s"):
        door.sql(
            "WITH RECURSIVE r AS (SELECT 1 AS a UNION ALL SELECT a + 1 FROM r) SELECT max(a) FROM r",
            timeout=0.3,
        )
    assert time.monotonic() - started < 3
    assert door.sql("SELECT 1").rows == [(1,)]


def test_a_query_that_needs_too_much_memory_is_stopped(door: Connection) -> None:
    with pytest.raises(SqlError, match="memory"):
        door.sql("SELECT list(range) FROM range(1000000000)", timeout=20)
    assert door.sql("SELECT 1").rows == [(1,)]


def test_the_environment_is_not_readable(door: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "SECRET", "s3cret")
    for text in ("SELECT getenv('SECRET')", "SELECT * FROM getenv('SECRET')", "SELECT GetEnv('SECRET')"):
        with pytest.raises(SqlError, match="refused"):
            door.sql(text)
