"""The SQL page: what is shown of a result, files, the field, saved queries, and what is refused through it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
import pytest
from pyarrow import parquet

from sparselens.dashboards import app
from sparselens.dashboards.query import Source
from sparselens.dashboards.selection import Selection
from sparselens.dashboards.sql.panel import drawn, tables
from sparselens.dashboards.sql.result import LONGEST, axes, chart_figure, heads_figure, numeric, result_figure

HEADS = "SELECT layer, head, avg(write_error) AS error, avg(kept_mass) AS kept FROM diffs GROUP BY ALL ORDER BY 3 DESC"
ATTACKS = (
    "COPY runs TO 'stolen.csv'",
    "ATTACH 'x.db'",
    "SET memory_limit = '99GB'",
    "SELECT * FROM read_text('/etc/hostname')",
    "SELECT getenv('HOME')",
    "SELECT 1; SELECT 2",
    "SELECT repeat('x', 1000000000)",
    "SELECT * FROM pg_settings",
)


@pytest.fixture(scope="module")
def client(trace: Path) -> Any:
    return app.create_app(trace).server.test_client()


def frame() -> Any:
    return pd.DataFrame(
        {"layer": [0, 0, 1], "head": [1, 1, 2], "name": ["<b>", "x" * 9_999, None], "loss": [0.5, 1.5, -1.0]}
    )


def test_values_are_cut_and_bytes_are_counted() -> None:
    columns, rows = result_figure(frame().assign(data=[b"abc"] * 3))
    assert [column.get("headerName") for column in columns] == [
        "open",
        "layer",
        "head",
        "name",
        "loss",
        "data",
    ]
    assert rows[0] == {"c0": 0, "c1": 1, "c2": "<b>", "c3": 0.5, "c4": "3 bytes", "layer": 0, "head": 1}
    assert len(rows[1]["c2"]) == LONGEST
    assert rows[2]["c2"] is None


def test_two_columns_of_one_name_are_both_shown_and_neither_is_an_axis() -> None:
    twice = pd.DataFrame([[1, 2, 3]], columns=["a", "a", "b"])
    assert result_figure(twice)[1] == [{"c0": 1, "c1": 2, "c2": 3}]
    assert numeric(twice) == ["b"]


def test_axes_are_as_asked_or_the_first_that_do_not_name_the_head() -> None:
    assert axes(frame(), "", "") == ("layer", "loss")
    assert axes(frame(), "loss", "head") == ("loss", "head")
    assert axes(frame(), "name", "nothing") == ("layer", "loss")
    assert axes(frame()[["name"]], "", "") == ("", "")


def test_the_chart_has_the_rows_and_no_markup() -> None:
    made = chart_figure(frame().rename(columns={"loss": "<a href='x'>"}), "layer", "<a href='x'>")
    assert list(made.data[0].x) == [0, 0, 1]
    assert list(made.data[0].y) == [0.5, 1.5, -1.0]
    assert made.layout.yaxis.title.text == "&lt;a href='x'&gt;"
    assert "<b>" not in made.data[0].customdata[0].replace("<br>", "")


def test_the_grid_has_the_mean_of_a_heads_rows_and_the_names_in_order() -> None:
    found = heads_figure(frame(), "loss", 3)
    assert found.names == ["L0H1", "L1H2"]
    assert (found.grid["layers"], found.grid["heads"], found.grid["scale"]) == (2, 3, "div")
    assert [found.grid["texts"][at] for at in (0, 1, 5)] == ["not in the result", "1.000", "−1.000"]
    assert [level is None for level in found.grid["levels"]] == [True, False, True, True, True, False]
    with pytest.raises(ValueError, match="no model"):
        heads_figure(frame().assign(layer=10_000_000), "loss", 0)


@pytest.mark.parametrize("show", ["table", "chart", "heads"])
def test_every_form_takes_every_result(trace: Path, show: str) -> None:
    source = Source(trace)
    for sql in (HEADS, "SELECT 1 WHERE false", "SELECT NULL AS layer, NULL AS head", "SELECT 'x' AS layer, 1 AS head",
                "SELECT -1 AS layer, 0 AS head, 1.5 AS x", "SELECT 'inf'::DOUBLE AS x, 'nan'::DOUBLE AS y",
                "SELECT [1, 2] AS l, {'a': 1} AS s, DATE '2026-01-01' AS d, 1::HUGEINT AS h"):  # fmt: skip
        found = source.ask(sql, max_rows=100, timeout=30).df()
        assert drawn(found, Selection(show=show), 2).body is not None, sql


def test_every_table_is_listed_with_unit_and_meaning() -> None:
    listed = {table["name"]: table for table in tables()}
    assert {"runs", "edges", "diffs", "head_scores"} <= set(listed)
    assert all(meaning for table in listed.values() for _, _, _, meaning in table["columns"])


def test_files_have_the_rows_and_parquet_its_types(client: Any) -> None:
    sql = quote("SELECT layer, head, '=x' AS f, sum(p) AS mass FROM edges GROUP BY ALL ORDER BY ALL")
    table = parquet.read_table(io.BytesIO(client.get(f"/view/sql.parquet?sql={sql}").data))
    assert table.column_names == ["layer", "head", "f", "mass"]
    assert str(table.schema.field("layer").type) == "uint8"
    assert table.column("f")[0].as_py() == "=x"
    answer = client.get(f"/view/sql.csv?sql={sql}")
    assert len(answer.text.splitlines()) == table.num_rows + 1
    assert answer.headers["X-Truncated"] == "false"
    for ending in ("csv", "parquet"):
        for attack in ATTACKS:
            refused = client.get(f"/view/sql.{ending}?sql={quote(attack)}")
            assert (refused.status_code, refused.mimetype) == (400, "text/plain"), attack
            assert b"\n" not in refused.data


@pytest.mark.browser
@pytest.mark.timeout(300)
def test_the_field_runs_completes_saves_and_keeps_all_of_it_in_the_url(visit: Any, served: str) -> None:
    page = visit(f"{served}sql")
    page.wait_for_selector("#tables summary", state="attached")
    page.click("#query")
    page.keyboard.type("SELECT run_id FROM feature_tok")
    page.wait_for_selector("#query-names li:has-text('feature_tokens')")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Tab")
    assert page.input_value("#query") == "SELECT run_id FROM feature_tokens"
    page.fill("#query", HEADS)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#result .link")
    assert page.locator("#query-colours .sql-word").count() > 3
    page.click("#panel-result >> text=Chart")
    page.wait_for_selector("#query-chart .main-svg")
    page.click("#panel-result >> text=Heads")
    page.wait_for_selector("#grid .cell")
    assert page.locator("#grid .cell").count() == 12
    with_query = page.url
    page.click("text=Open these heads")
    page.wait_for_selector("#finder .link")
    assert page.locator("#finder .link").count() == 12
    page.goto(with_query)
    page.wait_for_selector("#grid .cell")
    page.once("dialog", lambda asked: asked.accept("<img src=x onerror=window.injected=1>"))
    page.click("text=Save this query")
    page.wait_for_selector(".saved .sample")
    other = visit(page.url)
    other.wait_for_selector("#grid .cell")
    assert other.input_value("#query") == HEADS
    page.reload()
    page.wait_for_selector(".saved .sample")
    assert page.inner_text(".saved .sample") == "<img src=x onerror=window.injected=1>"
    assert page.evaluate("window.injected") is None
    page.click('[aria-label^="Forget"]')
    page.wait_for_selector("#saved-queries:has-text('none yet')")


@pytest.mark.browser
@pytest.mark.timeout(300)
def test_attacks_through_the_page_are_one_line(visit: Any, served: str) -> None:
    page = visit(f"{served}sql")
    for attack in ATTACKS:
        page.goto(f"{served}sql?sql={quote(attack)}")
        page.wait_for_selector("#query-problem")
        said = page.inner_text("#query-problem").strip()
        assert said
        assert "\n" not in said
        assert page.locator("#result").count() == 0
