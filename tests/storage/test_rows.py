"""What is written is what is read, for every column type."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from sparselens.storage.column import SQL_TYPES, Column, Table
from sparselens.storage.reader import connect
from sparselens.storage.rows import Coded, arrow_rows, in_order, row_groups
from sparselens.storage.schema import PUBLIC, ROW_GROUP_MIN, TABLES
from sparselens.storage.writer import RunWriter

_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
_FLOAT32 = st.floats(width=32, allow_nan=True)
_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "VARCHAR": _TEXT,
    "BOOLEAN": st.booleans(),
    "UTINYINT": st.integers(0, 2**8 - 1),
    "USMALLINT": st.integers(0, 2**16 - 1),
    "UINTEGER": st.integers(0, 2**32 - 1),
    "UBIGINT": st.integers(0, 2**64 - 1),
    "FLOAT": _FLOAT32,
    "DOUBLE": st.floats(),
    "BLOB": st.binary(max_size=20),
    "TIMESTAMP": st.datetimes(),
    "VARCHAR[]": st.lists(_TEXT, max_size=3),
    "UINTEGER[]": st.lists(st.integers(0, 2**32 - 1), max_size=3),
    "FLOAT[]": st.lists(st.floats(width=32, allow_nan=False), max_size=3),
}


@pytest.fixture(autouse=True)
def _no_views_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparselens.storage.reader.ensure_views_file", lambda trace: None)


def _value(column: Column) -> st.SearchStrategy[Any]:
    values = _VALUES[column.sql_type]
    if column.nullable:
        return st.none() | values
    return values.filter(lambda value: not (isinstance(value, float) and math.isnan(value)))


def _readable(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


@settings(max_examples=6, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(data=st.data())
@pytest.mark.parametrize("name", [name for name, table in PUBLIC.items() if table.stored])
def test_rows_come_back_as_they_were_written(name: str, data: st.DataObject) -> None:
    declared: Table = TABLES[name]
    filled = {declared.writer, "prompt_id", "head_name"}
    columns = [column for column in declared.columns if column.name not in filled]
    n = data.draw(st.integers(1, 4))
    given_rows = [[data.draw(_value(column)) for column in columns] for _ in range(n)]
    # one prompt's copy in `prompts`, so that the views of tables about prompts have a home for it
    with tempfile.TemporaryDirectory() as folder:
        run = RunWriter.start(Path(folder), "r1")
        with run.part(["p1"]) as part:
            if name != "prompts":
                part.add("prompts", {"name": "p", "n_tokens": 1})
            part.add(name, {c.name: [row[i] for row in given_rows] for i, c in enumerate(columns)})
        run.interrupt()
        with connect(folder) as trace:
            names = ", ".join(column.name for column in columns)
            view = f"{name}_history" if declared.history else name
            found = trace.sql(f"SELECT {names} FROM {view}").rows
    expected = [tuple(_readable(value) for value in row) for row in given_rows]
    assert sorted(found, key=repr) == sorted(expected, key=repr)


def test_every_type_in_the_schema_is_tried() -> None:
    used = {column.sql_type for table in PUBLIC.values() if table.stored for column in table.columns}
    assert used <= set(_VALUES) <= set(SQL_TYPES.values())


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"layr": 0}, "edges has no column layr; it has run_id"),
        ({"q_pos": [1, 2], "k_pos": [1, 2, 3]}, "columns of edges differ in length"),
        ({"layer": 256}, "edges.layer cannot be stored as UTINYINT"),
        ({"q_pos": np.array([-1])}, "edges.q_pos cannot be stored as UINTEGER"),
        ({"q_pos": np.array([1.5])}, "edges.q_pos cannot be stored as UINTEGER"),
        ({"p": np.array([np.nan])}, r"edges.p has missing values \(None or NaN\)"),
        ({"p": None}, "edges.p is missing"),
        ({"p": np.zeros((2, 2))}, "edges.p cannot be stored as FLOAT: expected one dimension"),
        ({"reason": 3}, "edges.reason cannot be stored as VARCHAR: expected a string"),
        ({"kept": "yes"}, "edges.kept cannot be stored as BOOLEAN"),
    ],
)
def test_unfit_rows_are_refused_by_name(columns: dict[str, Any], message: str) -> None:
    fit = {
        "run_id": "r",
        "prompt_id": "p",
        "layer": 0,
        "head": 0,
        "q_pos": 0,
        "k_pos": 0,
        "p": 0.5,
        "kept": True,
    }
    with pytest.raises(ValueError, match=message):
        arrow_rows(TABLES["edges"], fit | columns)


def test_half_precision_codes_and_head_names_are_taken() -> None:
    rows = arrow_rows(
        TABLES["head_stats"],
        {
            "run_id": "r",
            "prompt_id": "p",
            "pattern": Coded(np.array([1, 0]), ["executed", "dense"]),
            "rows": "all",
            "layer": np.int64(18),
            "head": np.array([6, 0]),
            "n_rows": 3,
            "entropy": np.array([0.5, np.nan], np.float16),
        },
    )
    assert rows.column("head_name").to_pylist() == ["L18H6", "L18H0"]
    assert rows.column("pattern").to_pylist() == ["dense", "executed"]
    assert rows.column("entropy").to_pylist() == [0.5, None]


def test_rows_are_sorted_and_sorted_rows_are_not_moved() -> None:
    declared = TABLES["edges"]
    fixed = {"run_id": "r", "prompt_id": "p", "k_pos": 0, "p": 0.5, "kept": True}
    mixed = arrow_rows(declared, fixed | {"layer": [1, 0, 0], "head": [0, 2, 1], "q_pos": [5, 6, 7]})
    ordered = in_order(declared, mixed)
    assert ordered.column("q_pos").to_pylist() == [7, 6, 5]
    assert in_order(declared, ordered) is ordered


def test_row_groups_are_whole_layers() -> None:
    declared = TABLES["edges"]
    n = ROW_GROUP_MIN * 3 // 4
    fixed = {"run_id": "r", "prompt_id": "p", "k_pos": 0, "p": 0.5, "kept": True, "head": 0, "q_pos": 0}
    rows = arrow_rows(declared, fixed | {"layer": np.repeat(np.arange(5), n)})
    assert list(row_groups(declared, rows, last=True)) == [(0, 2 * n), (2 * n, 4 * n), (4 * n, 5 * n)]
    assert list(row_groups(declared, rows, last=False)) == [(0, 2 * n), (2 * n, 4 * n)]
