"""The Runs page: notes are written into the trace, and shown as the text that they are."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browsing
import pytest

from sparselens.dashboards.app import create_app
from sparselens.dashboards.pages.runs import RUNS, noted
from sparselens.dashboards.query import Source
from sparselens.storage.pack import pack

TEXT = "<img src=x onerror=window.injected=1> seen"


@pytest.fixture
def copied(trace: Path, tmp_path: Path) -> Path:
    shutil.copytree(trace, tmp_path / "trace")
    return tmp_path / "trace"


def test_a_note_is_a_column_of_the_table_and_no_run_of_its_own(copied: Path) -> None:
    source = Source(copied)
    before = source.records(RUNS)
    assert "Noted on window" in str(noted(source, "run-1-window", "seen"))
    after = source.records(RUNS)
    assert len(after) == len(before)
    assert {row["run_id"]: row["note"] for row in after}["run-1-window"] == "seen"
    assert "No note on window" in str(noted(source, "run-1-window", " "))
    assert all(row["note"] is None for row in source.records(RUNS))


def test_what_cannot_be_noted_is_said(copied: Path, tmp_path: Path) -> None:
    assert "is not a run" in str(noted(Source(copied), "run-9", "x"))
    pack(copied, tmp_path / "packed.duckdb")
    assert "packed trace" in str(noted(Source(tmp_path / "packed.duckdb"), "run-1-window", "x"))


def test_no_other_site_writes_a_note(copied: Path) -> None:
    client = create_app(copied).server.test_client()
    body = {
        "output": "runs-noted.children",
        "outputs": {"id": "runs-noted", "property": "children"},
        "inputs": [
            {
                "id": "runs",
                "property": "cellValueChanged",
                "value": [{"data": {"run_id": "run-1-window"}, "value": "x"}],
            }
        ],
        "changedPropIds": ["runs.cellValueChanged"],
    }
    for headers in ({}, {"Origin": "http://elsewhere"}, {"Origin": "null"}):
        answer = client.post("/_dash-update-component", json=body, headers=headers)
        assert "own pages alone" in answer.text
    assert all(row["note"] is None for row in Source(copied).records(RUNS))
    answer = client.post("/_dash-update-component", json=body, headers={"Origin": "http://localhost"})
    assert "Noted on window" in answer.text


@pytest.fixture
def served(copied: Path) -> Iterator[str]:
    yield from browsing.served(copied)


@pytest.mark.browser
@pytest.mark.timeout(300)
def test_a_note_typed_into_the_table_is_there_after_a_reload(visit: Any, served: str) -> None:
    page = visit(f"{served}runs")
    cell = '.ag-row:has([col-id="name"]:text-is("window")) [col-id="note"]'
    page.dblclick(cell)
    page.fill(".ag-large-text-input textarea", TEXT)
    page.keyboard.press("Enter")
    page.wait_for_selector("#runs-noted:has-text('Noted on window')")
    page.reload()
    page.wait_for_selector(f"{cell}:has-text('seen')")
    assert page.inner_text(cell) == TEXT
    assert page.evaluate("window.injected") is None
    browsing.shot(page, "runs-noted")
