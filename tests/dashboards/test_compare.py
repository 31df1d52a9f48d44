"""Compare in a real browser: brush the text, put runs side by side, give heads back and see the bar appear."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browsing
import pytest
from browsing import chosen, shot

from sparselens.dashboards.compare import repair_panel
from sparselens.dashboards.compare.brush import brushed
from sparselens.dashboards.query import Source
from sparselens.dashboards.selection import Selection

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]
FINISHED = """
import sys
from sparselens.storage.writer import RunWriter

print("loading", flush=True)
args = {"policy": "a_shape(sink=4,window=16)", "base": "dense()", "kind": "run_dense", "phase": "both"}
meta = {"name": "restore", "kind": "analysis", "model": "invented", "args": args, "prompt_set": "needles(n=2)"}
trials = [
    ("none", None, 0, {"answer_nll": 3.4, "gap": 3.3}), ("base", None, 0, {"answer_nll": 0.1}),
    ("run_dense", "given", 2, {"answer_nll": 1.0, "gap_closed": 0.75}),
    ("run_dense", "random", 2, {"answer_nll": 3.3, "gap_closed": 0.03}),
]
with RunWriter.start(sys.argv[sys.argv.index("--trace") + 1], meta=meta) as run:
    with run.part([]) as part:
        for number, (kind, order, heads, found) in enumerate(trials):
            for metric, value in found.items():
                part.add("interventions", {
                    "base_run": "run-2-sink-window", "trial": number, "fold": None, "kind": kind, "order_by": order,
                    "matched": "given" if order == "random" else None, "n_heads": heads, "draw": None,
                    "heads": [["L1H2", "L0H0"] if order == "given" else []], "metric": metric, "value": value,
                    "n": 2, "n_clusters": 2, "ci_low": value - 0.05, "ci_high": value + 0.05})
    run.finish({})
print(sys.argv[2], flush=True)
"""
"""Stands in for the command line: it writes what a restore of these heads would, and ends."""


@pytest.fixture
def restoring(trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The pages over a copy of the small trace, whose server may start the command and finds a stand-in for it."""
    shutil.copytree(trace, tmp_path / "trace")
    (tmp_path / "restore.py").write_text(FINISHED)
    monkeypatch.setattr(repair_panel, "CLI", (sys.executable, str(tmp_path / "restore.py")))
    monkeypatch.setattr(repair_panel, "refusal", lambda asked, shape: "")
    yield from browsing.served(tmp_path / "trace")


def drag(page: Any, first: int, last: int) -> None:
    """Drag over tokens that stand in one line each, from the middle of one to the middle of another."""
    tokens = page.locator("#text .token")
    tokens.nth(first).scroll_into_view_if_needed()
    boxes = [tokens.nth(at).bounding_box() for at in (first, last)]
    (x, y), (to_x, to_y) = (
        (round(box["x"] + box["width"] / 2), round(box["y"] + box["height"] / 2)) for box in boxes
    )
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(to_x, to_y, steps=4)
    page.mouse.up()


def test_brushing_tokens_recomputes_the_heads_over_their_rows(visit: Any, served: str, trace: Path) -> None:
    page = visit(served)
    page.wait_for_selector(".cell[aria-current]")
    page.wait_for_selector("#keys del")
    drag(page, 41, 45)
    page.wait_for_selector("#heads-over:has-text('5 rows, those that predict tokens 41–45')")
    assert chosen(page)["brush"] == "41-46"
    page.wait_for_selector("#brush-line:has-text('5 rows predict them')")
    page.wait_for_selector("#headline:has-text('the 5 rows of tokens 41–45')")
    page.wait_for_selector("#keys:has-text('Tokens 41–45')")
    queries = {int(text.split()[1]) for text in page.locator("#keys h3").all_inner_texts()}
    assert queries
    assert queries <= set(range(40, 45))
    assert page.locator("#text .token.in").count() == 5
    frame = brushed(Source(trace), Selection.parse(page.url.partition("?")[2])[0]).frame
    worst = frame.loc[frame["write_error"].idxmax(), "head_name"]
    page.wait_for_selector(
        f"#ranked .ag-pinned-left-cols-container [row-index='0'] .link:has-text('{worst}')"
    )
    page.wait_for_selector(f"#headline a:has-text('{worst}')")
    shot(page, "compare-brush")
    page.locator("#text .token").nth(43).click(modifiers=["Shift"])
    page.wait_for_function("new URLSearchParams(location.search).get('brush') === '41-44'")
    page.keyboard.press("Shift+ArrowRight")
    page.wait_for_function("new URLSearchParams(location.search).get('brush') === '41-45'")
    page.wait_for_selector("#heads-over:has-text('4 rows')")
    page.reload()
    page.wait_for_selector("#heads-over:has-text('4 rows')")
    page.wait_for_function("document.querySelectorAll('#text .token.in').length === 4")
    page.keyboard.press("Escape")
    page.wait_for_function("!new URLSearchParams(location.search).has('brush')")
    page.wait_for_function("document.querySelector('#heads-over').textContent === ''")
    page.locator("#text .token").nth(45).click()
    page.wait_for_function("new URLSearchParams(location.search).get('q') === '44'")


def test_runs_stand_side_by_side_and_a_cell_leads_to_its_run_and_head(visit: Any, served: str) -> None:
    page = visit(f"{served}?over=all&runs=run-1-window,nobody")
    page.wait_for_selector(".lane-cell")
    assert "'nobody' is A itself or no captured run" in page.inner_text("#matrix-lines")
    page.click("text=All runs of this base")
    page.wait_for_function("document.querySelectorAll('.lane-cell').length === 24")
    assert chosen(page)["runs"] == "run-1-window,run-2-sink-window"
    cell = page.locator('.lane-cell[data-cell="L1H2"]').first
    cell.hover()
    page.wait_for_selector("#matrix-readout:has-text('L1H2')")
    assert "write_error" in page.inner_text("#matrix-readout")
    name = page.locator("[data-run]").first.get_attribute("data-run")
    cell.click()
    page.wait_for_function("name => new URLSearchParams(location.search).get('b') === name", arg=name)
    assert (chosen(page)["layer"], chosen(page)["head"]) == ("1", "2")
    page.wait_for_selector(f'[data-run="{name}"][aria-current]')
    page.wait_for_selector("#matrix-table .ag-row")
    assert page.locator("#matrix-table .ag-center-cols-container .ag-row").count() == 12
    shot(page, "compare-runs")


def test_a_restore_is_run_from_the_page_and_its_bar_appears(visit: Any, restoring: str) -> None:
    page = visit(restoring)
    page.wait_for_selector(".cell[aria-current]")
    page.wait_for_selector("#repairs:has-text('No restore of this pair')")
    page.wait_for_selector("#ranked .pick")
    page.click('#ranked .pick[data-pick="L1H2"]')
    page.wait_for_selector('.picked [data-pick="L1H2"]')
    page.click('#ranked .pick[data-pick="L0H0"]')
    page.wait_for_selector("#pick-line:has-text('heads=[L1H2,L0H0]')")
    assert chosen(page)["picked"] == "L1H2,L0H0"
    assert "ranked on the very prompts" in page.inner_text("#pick-command")
    page.click("#job-run")
    page.wait_for_selector("#job:has-text('is done')")
    page.wait_for_selector(".repair-bar:has-text('2 heads (given by name) back')")
    assert "closes 75.0 % [70.0 %, 80.0 %]" in page.inner_text("#repairs")
    page.wait_for_selector(".repaired:has-text('2 heads (given by name) close 75.0 %')")
    assert "random heads of the same layers 3.0 %" in page.inner_text(".repaired")
    shot(page, "compare-restore")


def test_what_the_server_does_not_start_is_a_command_and_a_reason(visit: Any, served: str) -> None:
    page = visit(f"{served}?picked=L1H2")
    page.wait_for_selector("#pick-command .said")
    said = page.inner_text("#pick-command")
    assert "its model 'invented' is none of `sparselens models`" in said
    assert "restore(heads=[L1H2],orders=[given]" in said
    assert page.is_disabled("#job-run")


def test_a_brush_on_a_long_prompt_is_answered_with_little(visit: Any, long_served: str) -> None:
    page = visit(long_served)
    page.wait_for_function("document.querySelectorAll('#text .token').length === 8192")
    sizes: list[int] = []
    page.on("response", lambda answer: sizes.append(len(answer.body())) if "update" in answer.url else None)
    page.evaluate("sparselens.go({brush: '100-8000'})")
    page.wait_for_selector("#brush-line:not(:empty)")
    page.wait_for_selector("#heads-over:not(:empty), #grid-legend .message")
    assert sizes
    assert sum(sizes) < 300_000
