"""A trace of an older schema is read: columns and tables that came later are NULL and empty."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from sparselens.storage.reader import connect
from sparselens.storage.schema import STORED
from sparselens.storage.trace import EMPTY, Trace
from sparselens.storage.writer import RunWriter

NEW = ("trial", "fold", "matched", "n_clusters", "prompt_set", "definition")


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """A trace as version 1 wrote it: no `intervention_prompts`, `interventions` without the later columns."""
    path = tmp_path / "trace"
    with RunWriter.start(path, meta={"kind": "analysis", "name": "restore"}) as run:
        with run.part([]) as part:
            part.add(
                "interventions",
                {"base_run": "b", "trial": 0, "kind": "none", "heads": [[]], "n_heads": 0, "metric": "m"}
                | {"value": 1.5},
            )
        run.finish()
    for file in [*path.glob("runs/*/part-*/interventions.parquet"), path / EMPTY / "interventions.parquet"]:
        pq.write_table(pq.read_table(file).drop_columns(NEW), file)
    for name in ("intervention_prompts", "estimates"):
        (path / EMPTY / f"{name}.parquet").unlink()
    shutil.move((path / EMPTY).parent, path / "schema" / "empty")
    for record in path.glob("runs/*/*.json"):
        fields = json.loads(record.read_bytes())
        if "schema_version" in fields:
            record.write_text(json.dumps(fields | {"schema_version": 1}))
    return path


def test_rows_of_an_older_schema_are_read_with_nulls(older: Path) -> None:
    with connect(older) as trace:
        (row,) = trace.sql("SELECT kind, value, trial, definition FROM interventions").rows
        assert tuple(row) == ("none", 1.5, None, None)
        assert trace.sql("SELECT count(*) FROM intervention_prompts").rows == [(0,)]
    assert [entry.name for entry in (older / "schema").iterdir() if entry.is_dir()] == [EMPTY.parts[1]]
    assert {file.stem for file in (older / EMPTY).iterdir()} == set(STORED)


def test_other_clients_read_it_too(older: Path) -> None:
    connect(older).close()
    with duckdb.connect(str(older / "trace.duckdb"), read_only=True) as client:
        client.execute(f"SET file_search_path = '{older.resolve()}'")
        assert client.execute("SELECT value, trial FROM interventions").fetchall() == [(1.5, None)]


def test_new_rows_go_beside_older_ones(older: Path) -> None:
    with RunWriter.start(Trace.open(older), meta={"kind": "analysis", "name": "ablate"}) as run:
        with run.part([]) as part:
            part.add(
                "interventions",
                {"base_run": "c", "trial": 3, "kind": "zero", "heads": [["L0H1"]], "n_heads": 1}
                | {"metric": "m", "value": 2.0, "definition": "words"},
            )
        run.finish()
    with connect(older) as trace:
        rows = trace.sql("SELECT value, trial, definition FROM interventions ORDER BY value").rows
    assert [tuple(row) for row in rows] == [(1.5, None, None), (2.0, 3, "words")]
