"""Queries that try to read files, change something, learn of the machine, or take it down: none succeeds."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sparselens.storage.box import Box
from sparselens.storage.guard import LONGEST_TEXT
from sparselens.storage.reader import Connection, SqlError, connect
from sparselens.storage.trace import Run

SECRET = "the-secret-in-a-file"
REFUSED = {
    "writes": [
        "COPY edges TO '{out}'",
        "COPY edges TO '{out}' (FORMAT parquet)",
        "COPY (SELECT 1) TO '{out}' /**/",
        "/**/COPY/**/edges/**/TO '{out}'",
        "EXPORT DATABASE '{out}'",
        "ATTACH '{out}' AS x",
        "ATTACH ':memory:' AS x",
        "-- SELECT 1\nATTACH '{out}' AS x",
        "SELECT 1; ATTACH '{out}' AS x",
        "SELECT 1;\n--\nCOPY edges TO '{out}'",
        "WITH x AS (COPY edges TO '{out}') SELECT 1",
        "WITH x AS MATERIALIZED (COPY edges TO '{out}') SELECT * FROM x",
        "WITH RECURSIVE x AS (COPY edges TO '{out}') SELECT * FROM x",
        "SELECT * FROM runs WHERE name IN (WITH x AS (COPY edges TO '{out}') SELECT name FROM x)",
        "SELECT * FROM (COPY edges TO '{out}')",
        "EXPLAIN ANALYZE WITH x AS (COPY edges TO '{out}') SELECT * FROM x",
        "CREATE TABLE x AS FROM edges",
        "CREATE MACRO f(x) AS getenv(x)",
        "CREATE TEMP VIEW x AS SELECT 1",
        "MERGE INTO stored.runs USING runs ON true WHEN MATCHED THEN DELETE",
        "SELECT * FROM (DELETE FROM stored.runs RETURNING *)",
        "SELECT setval('x', 1)",
    ],
    "extensions and settings": [
        "INSTALL httpfs",
        "FORCE INSTALL httpfs",
        "LOAD '{out}.duckdb_extension'",
        "UPDATE EXTENSIONS",
        "SET memory_limit = '99GB'",
        "/* */ SET/* */threads = 9",
        "SET GLOBAL enable_external_access = true",
        "RESET lock_configuration",
        "PRAGMA enable_profiling",
        "PRAGMA threads = 9",
        "PRAGMA table_info('edges')",
        "CALL duckdb_settings()",
        "SET VARIABLE x = 1",
        "PREPARE q AS SELECT getenv('HOME')",
        "EXECUTE q",
        "EXECUTE IMMEDIATE 'SELECT 1'",
        "DEALLOCATE q",
    ],
    "reads files": [
        "SELECT * FROM read_csv('{secret}')",
        "SELECT * FROM READ_CSV_AUTO('{secret}')",
        "SELECT * FROM read_text('{secret}')",
        "SELECT * FROM read_blob('{secret}')",
        "SELECT * FROM read_json_objects('{secret}')",
        "SELECT * FROM read_ndjson('{secret}')",
        "SELECT * FROM parquet_scan('{secret}')",
        "SELECT * FROM parquet_metadata('{secret}')",
        "SELECT * FROM parquet_schema('{secret}')",
        "SELECT * FROM sniff_csv('{secret}')",
        "SELECT * FROM glob('/*')",
        "SELECT * FROM \"read_text\"('{secret}')",
        "SELECT * FROM main.read_text('{secret}')",
        "SELECT * FROM system.main.read_text('{secret}')",
        "FROM read_text('{secret}')",
        "SELECT * FROM runs, LATERAL (SELECT * FROM read_text('{secret}'))",
        "SELECT * FROM runs WHERE EXISTS (FROM read_text('{secret}'))",
        "SELECT * FROM runs ORDER BY (SELECT max(content) FROM read_text('{secret}'))",
        "SELECT (SELECT (SELECT max(content) FROM read_text('{secret}')))",
        "VALUES ((SELECT max(content) FROM read_text('{secret}')))",
        "SELECT 1 UNION ALL SELECT content FROM read_text('{secret}')",
        "SELECT count(*) FILTER (EXISTS (FROM read_text('{secret}'))) FROM runs",
        "SELECT sum(p) OVER (ORDER BY (SELECT max(content) FROM read_text('{secret}'))) FROM edges",
        "SELECT list_transform([1], x -> (SELECT max(content) FROM read_text('{secret}')))",
        "DESCRIBE SELECT * FROM read_text('{secret}')",
        "SUMMARIZE SELECT * FROM read_text('{secret}')",
        "EXPLAIN SELECT * FROM read_text('{secret}')",
        "EXPLAIN ANALYZE SELECT * FROM read_text('{secret}')",
        "SELECT * FROM '{secret}'",
        'SELECT * FROM "{secret}"',
        "SUMMARIZE '{secret}'",
        'SELECT * FROM "file:{secret}"',
        "SELECT * FROM x.y.'{secret}'",
        'SELECT * FROM "x.db"."y"',
        "SELECT * FROM query('SELECT 1')",
        "SELECT * FROM query_table('edges')",
        "SELECT * FROM query_table(['edges', '{secret}'])",
        "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
        "SELECT json_serialize_plan('SELECT * FROM read_text(''{secret}'')')",
        "SELECT * FROM sql_auto_complete('SEL')",
        "SELECT * FROM arrow_scan(1, 2, 3)",
        "SELECT * FROM pandas_scan(1)",
        "SELECT * FROM sqlite_scan('{secret}', 'x')",
    ],
    "the machine": [
        "SELECT getenv('HOME')",
        "SELECT \"getenv\"('HOME')",
        "SELECT system.main.getenv('HOME')",
        "SELECT 'HOME'.getenv()",
        "SELECT list_transform(['HOME'], x -> getenv(x))",
        "SELECT list_apply(['HOME'], lambda x: x.getenv())",
        "SELECT COLUMNS(c -> getenv(c) IS NULL) FROM runs",
        "SELECT * REPLACE (getenv('HOME') AS name) FROM runs",
        "SELECT * FROM runs LIMIT (SELECT length(getenv('HOME')))",
        "SELECT current_setting('allowed_directories')",
        "SELECT * FROM duckdb_settings()",
        "SELECT * FROM pg_settings",
        "SELECT * FROM pg_catalog.pg_settings",
        "SELECT * FROM PG_CATALOG.pg_database",
        "SELECT * FROM duckdb_logs",
        "SELECT * FROM duckdb_databases()",
        "SELECT * FROM pragma_database_list",
        "SELECT * FROM duckdb_secrets()",
        "SELECT * FROM duckdb_temporary_files()",
        "SELECT write_log('x')",
    ],
    "texts and lists of any length, and sleep": [
        "SELECT repeat('x', 1000000000)",
        "SELECT lpad('x', 1000000000, 'x')",
        "SELECT rpad('x', 1000000000, 'x')",
        "SELECT printf('%1000000000d', 1)",
        "SELECT format('{:1000000000}', 1)",
        "SELECT list_resize([1], 1000000000)",
        "SELECT len(range(5000000000))",
        "SELECT sleep_ms(100000)",
        "SELECT pg_sleep(100)",
        "SELECT " + "[" * 800 + "1" + "]" * 800,
        "SELECT " + "(" * 20_000 + "1" + ")" * 20_000,
        "SELECT * FROM " + "(SELECT * FROM " * 900 + "runs" + ")" * 900,
        "SELECT 1" + " " * LONGEST_TEXT,
    ],
}
TEN = "xxxxxxxxxx"
BOMBS = {
    "endless recursion": "WITH RECURSIVE r AS (SELECT 1 AS a UNION ALL SELECT a + 1 FROM r) SELECT max(a) FROM r",
    "doubling text": f"WITH RECURSIVE r AS (SELECT '{TEN}' AS a UNION ALL SELECT a || a FROM r) SELECT max(a) FROM r",
    "cross join": "SELECT count(*) FROM range(1000000) a, range(1000000) b, range(1000000) c WHERE a.range > 3",
    "nested replace": "SELECT length(" + "replace(" * 8 + f"'{TEN}'" + f", 'x', '{TEN}')" * 8 + ")",
    "one long call": "SELECT levenshtein(x, x) FROM (SELECT string_agg(range::VARCHAR, '') AS x FROM range(60000))",
    "a list that is a text": "SELECT length(array_to_string(range(200000000), ','))",
    "one huge value": "SELECT string_agg('xxxxxxxxxxxxxxxxxxxxxxxx', '') FROM range(8000000)",
}


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory, writing: Callable[..., Run]) -> Path:
    path = tmp_path_factory.mktemp("attacked") / "trace"
    writing(path, ["p1"])
    return path


@pytest.fixture(scope="module")
def door(trace: Path) -> Iterator[Connection]:
    with connect(trace, memory="300MB", threads=1) as connection:
        yield connection


@pytest.fixture(scope="module")
def box(trace: Path) -> Iterator[Box]:
    opened = Box(trace, memory="300MB")
    yield opened
    opened.close()


@pytest.mark.parametrize("kind", REFUSED)
def test_an_attack_is_refused_in_one_line_and_leaves_nothing(
    door: Connection, trace: Path, tmp_path: Path, kind: str
) -> None:
    secret, out = tmp_path / "secret.csv", tmp_path / "stolen"
    secret.write_text(SECRET)
    before = sorted(trace.rglob("*"))
    for text in REFUSED[kind] * 2:  # texts that passed are remembered: these must not be
        with pytest.raises(SqlError) as refusal:
            door.sql(text.replace("{secret}", str(secret)).replace("{out}", str(out)), timeout=20)
        assert "\n" not in str(refusal.value), text[:80]
        assert SECRET not in str(refusal.value), text[:80]
    assert [path.name for path in tmp_path.iterdir()] == ["secret.csv"]
    assert sorted(trace.rglob("*")) == before
    assert door.sql("SELECT count(*) FROM runs").rows == [(1,)]


def test_a_result_that_python_cannot_take_is_one_line(door: Connection) -> None:
    with pytest.raises(SqlError):
        door.sql("SELECT " + "[" * 150 + "1" + "]" * 150)


def test_bytes_beyond_the_cap_are_cut_row_by_row(door: Connection) -> None:
    text = "SELECT string_agg('xxxxxxxxxx', '') AS x FROM range(1000), range(10) b GROUP BY b.range"
    result = door.sql(text, max_bytes=35_000)
    assert (len(result), result.truncated) == (3, True)
    with pytest.raises(SqlError, match="one row"):
        door.sql(text, max_bytes=5_000)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_query_that_does_not_stop_by_itself_is_ended_and_the_next_one_answered(box: Box, bomb: str) -> None:
    assert box.sql("SELECT 1", timeout=30).rows == [(1,)]
    started = time.monotonic()
    with pytest.raises(SqlError, match="stopped") as refusal:
        box.sql(BOMBS[bomb], timeout=1)
    assert time.monotonic() - started < 8
    assert "\n" not in str(refusal.value)
    assert box.sql("SELECT count(*) FROM runs", timeout=30).rows == [(1,)]


def test_the_box_gives_what_the_door_gives(box: Box, door: Connection) -> None:
    text = "SELECT run_id, [1, 2] AS l, {'a': 1.5} AS s, NULL AS n, DATE '2026-01-02' AS d FROM runs"
    here, there = door.sql(text), box.sql(text)
    assert (there.rows, there.columns, there.types) == (here.rows, here.columns, here.types)
    assert len(box.sql("SELECT * FROM range(100)", max_rows=7)) == 7
    for text in ("COPY runs TO 'x'", "SELECT * FROM read_text('/etc/hostname')", "SELEC 1"):
        with pytest.raises(SqlError) as here_refused:
            door.sql(text)
        with pytest.raises(SqlError) as there_refused:
            box.sql(text)
        assert str(there_refused.value) == str(here_refused.value)


def test_the_box_has_none_of_the_environment(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", SECRET)
    opened = Box(trace)
    try:
        opened.sql("SELECT 1", timeout=30)
        process = opened._process
        assert process is not None
        environment = Path(f"/proc/{process.pid}/environ")
        if environment.exists():
            assert SECRET.encode() not in environment.read_bytes()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert opened.sql("SELECT 2", timeout=30).rows == [(2,)]
    finally:
        opened.close()


def test_a_folder_that_is_no_trace_is_said(tmp_path: Path) -> None:
    opened = Box(tmp_path)
    with pytest.raises(SqlError, match="is not a trace"):
        opened.sql("SELECT 1")
