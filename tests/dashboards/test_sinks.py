"""The Sinks page finds the planted sinks, and says which command makes what is missing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import browsing
import numpy as np
import pytest
from needle_trace import BASE, LAYERS, LENGTH, RUN

from sparselens.dashboards.app import create_app
from sparselens.dashboards.choice import settle
from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.route import as_floats
from sparselens.dashboards.selection import Selection
from sparselens.dashboards.sinks.profile import LAYERS as BY_LAYER
from sparselens.dashboards.sinks.profile import (
    NUMBERS,
    RUNS,
    by_run,
    command,
    headline,
    layer_figures,
    policy_table,
)
from sparselens.dashboards.sinks.sink import (
    EDGE,
    RECEIVED,
    SINK_TOKENS,
    TEXT,
    plain_lists,
    text_figure,
    token_rows,
)
from sparselens.dashboards.sinks.strip import MOST_COLUMNS, pool, strips

METRICS = ["sink_rate", "value_drain", "residual_peak"]


@pytest.fixture(scope="module")
def source(needles: Path) -> Source:
    return Source(needles)


@pytest.fixture(scope="module")
def selection(source: Source) -> Selection:
    return settle(source, Selection(prompt="prompt-0"), []).selection


def sinks(source: Source, b: str | None = RUN) -> list[dict[str, Any]]:
    asked = {"a": BASE, "b": b, "prompt": "prompt-0", "received": RECEIVED, "edge": EDGE}
    return plain_lists(source.records(SINK_TOKENS, **asked))


def plain(component: Any) -> str:
    return json.dumps(component, default=lambda part: part.to_plotly_json(), ensure_ascii=False)


def test_the_planted_sinks_are_found_with_their_layers_and_fate(source: Source) -> None:
    rows = {row["pos"]: row for row in token_rows(sinks(source), pair=True)}
    assert set(rows) == {0, 3, 5}, "token 30 lies in the part of the prompt that is not judged"
    assert (rows[0]["fate"], rows[0]["layers_a"], rows[0]["layers_b"]) == (
        "a sink in A and in B",
        "0–1",
        "0–1",
    )
    assert (rows[5]["fate"], rows[5]["layers_a"], rows[5]["layers_b"]) == ("a sink in A only", "1", "")
    assert (rows[3]["fate"], rows[3]["layers_b"], rows[3]["received_b"]) == (
        "a sink in B only",
        "0",
        pytest.approx(0.2),
    )
    assert rows[0]["norm_a"] == pytest.approx(50.0)
    assert rows[3]["text"] == "<b>bold</b>"


def test_without_a_second_run_a_sink_is_a_sink(source: Source) -> None:
    rows = token_rows(sinks(source, None), pair=False)
    assert {row["pos"]: row["fate"] for row in rows} == {0: "a sink in A", 5: "a sink in A"}


def test_the_text_marks_the_sinks_of_the_layers_that_are_looked_at(source: Source) -> None:
    asked: dict[str, Any] = {"a": BASE, "b": RUN, "prompt": "prompt-0", "layer": 1}
    everywhere = text_figure(source.records(TEXT, among="any", **asked), sinks(source), pair=True, layer=None)
    assert everywhere["marks"] == {"0": "both", "5": "lost", "3": "new"}
    assert everywhere["values"]["a"][5] == pytest.approx(0.3)
    assert everywhere["levels"]["diff"][5] < 16 < everywhere["levels"]["diff"][3]
    one = text_figure(source.records(TEXT, among="layer", **asked), sinks(source), pair=True, layer=1)
    assert one["marks"] == {"0": "both", "5": "lost"}
    assert one["values"]["b"][3] == pytest.approx(0.01)


def test_strips_hold_the_table_and_norms_are_relative(
    source: Source, selection: Selection, needles: Path
) -> None:
    found = strips(source, selection)
    assert found["a"].shape == found["b"].shape == (LAYERS, LENGTH)
    assert (found["a"][1, 5], found["b"][0, 3]) == (pytest.approx(0.3), pytest.approx(0.2))
    norms = strips(source, replace(selection, strip="norm"))["a"]
    np.testing.assert_allclose(norms[:, :2], [[50, 1]] * LAYERS)
    client = create_app(needles).server.test_client()
    asked = f"a={BASE}&b={RUN}&prompt=prompt-0"
    np.testing.assert_allclose(
        as_floats(client.get(f"/view/tokens?{asked}&side=a&seen=1").data).reshape(LAYERS, LENGTH), found["a"]
    )
    assert client.get(f"/view/tokens.png?{asked}&side=b&theme=light").data.startswith(b"\x89PNG")
    assert client.get(f"/view/tokens.png?{asked}&side=diff").status_code == 400


def test_long_prompts_join_neighbours_by_their_largest(
    source: Source, selection: Selection, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [pool(length) for length in (1, MOST_COLUMNS, MOST_COLUMNS + 1, 8192)] == [1, 1, 2, 11]
    monkeypatch.setattr("sparselens.dashboards.sinks.strip.MOST_COLUMNS", 8)
    joined = strips(Source(source.path), selection)["a"]
    assert joined.shape == (LAYERS, 8)
    np.testing.assert_allclose(joined[1, :3], [0.6, 0.3, 0.01])


def test_a_trace_without_token_stats_says_so(trace: Path) -> None:
    source = Source(trace)
    with pytest.raises(SourceError, match="No token_stats"):
        strips(source, settle(source, Selection(), []).selection)


def test_runs_that_were_not_analysed_are_named_in_the_table(source: Source, selection: Selection) -> None:
    runs = source.records(RUNS, a=BASE, b=RUN)
    numbers = by_run(source.records(NUMBERS, runs=[run["run_id"] for run in runs]))
    assert [run["name"] for run in runs] == ["dense", "window"]
    said = plain(policy_table(runs, numbers, selection))
    assert "50.0 %" in said
    assert "[40.0 %, 60.0 %]" in said
    assert "not analysed" in said
    assert command(source, "window").endswith('--run "window"')


def test_phases_and_layers_are_those_of_the_rows(source: Source, selection: Selection) -> None:
    rows = source.records(BY_LAYER, a=BASE, b=RUN, metrics=METRICS)
    said = headline(rows, BASE, {"sink_rate": {"value": 0.5}})
    assert said.startswith("50.0 % of heads × prompts sink on the first token; sink in layers 1 ")
    assert "drain in layers 1 " in said
    assert headline(rows, RUN, {}) == ""
    drawn = {metric: figure for metric, _, figure in layer_figures(rows, selection)}
    assert list(drawn["sink_rate"].data[0].y) == [0.0, 1.0]
    assert drawn["residual_peak"].layout.yaxis.type == "log"


@pytest.fixture(scope="module")
def served(needles: Path) -> Iterator[str]:
    yield from browsing.served(needles)


@pytest.mark.browser
@pytest.mark.timeout(480)
def test_the_page_marks_sinks_and_a_strip_selects_layer_and_token(visit: Any, served: str) -> None:
    page = visit(f"{served}sinks?prompt=prompt-0")
    page.wait_for_selector("#text .token.sink.lost")
    assert page.locator("#text .token.sink").count() == 3
    assert page.locator("#text .token").nth(3).inner_text() == "<b>bold</b>"
    page.wait_for_selector("#sink-missing .command")
    assert "analyse sinks --trace" in page.inner_text("#sink-missing")
    page.wait_for_selector(".strip-frame >> nth=1")
    box = page.locator(".strip-frame").first.bounding_box()
    page.mouse.move(box["x"] + 5.5 / LENGTH * box["width"], box["y"] + 0.75 * box["height"])
    page.wait_for_selector("#strip-readout:has-text('A 0.3000')")
    assert "layer 1" in page.inner_text("#strip-readout")
    page.mouse.click(box["x"] + 5.5 / LENGTH * box["width"], box["y"] + 0.75 * box["height"])
    page.wait_for_selector("#text .token.chosen")
    assert (browsing.chosen(page)["layer"], browsing.chosen(page)["q"]) == ("1", "5")
    head = browsing.chosen(page)["head"]
    page.focus(".strip-frame >> nth=0")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("new URLSearchParams(location.search).get('q') === '6'")
    page.keyboard.press("ArrowUp")
    page.wait_for_selector("#strip-readout:has-text('layer 0')")
    now = browsing.chosen(page)
    assert (now["layer"], now["q"], now["head"]) == ("0", "6", head)
    page.wait_for_selector("#sink-tokens .link")
    page.click("#sink-tokens .link >> nth=0")
    page.wait_for_function("new URLSearchParams(location.search).get('q') === '0'")
    page.wait_for_selector(".js-plotly-plot .lines path", state="attached")
    browsing.shot(page, "sinks")


@pytest.mark.browser
@pytest.mark.timeout(480)
def test_a_trace_without_sinks_and_an_empty_one_say_what_to_run(
    visit: Any, long_served: str, empty_served: str
) -> None:
    page = visit(f"{long_served}sinks", width=390, height=800)
    page.wait_for_selector("#strips .message")
    page.wait_for_selector("#sink-missing .command")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.goto(f"{empty_served}sinks")
    page.wait_for_selector("#notices .command")
    assert "Traceback" not in page.content()
