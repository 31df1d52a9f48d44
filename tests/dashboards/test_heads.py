"""The Heads page shows every number that the trace has about heads, as it is stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import browsing
import numpy as np
import pytest
from needle_findings import RETRIEVAL
from needle_trace import BASE, RUN, write_error
from PIL import Image

from sparselens.analyses.interval import clustered_mean
from sparselens.dashboards.app import create_app
from sparselens.dashboards.choice import settle
from sparselens.dashboards.compare.grid_panel import holding_zero
from sparselens.dashboards.heads.finder import both, grid_figure, inside, ranked, roles, score_range
from sparselens.dashboards.heads.multiple import layer_maps, multiples_figure
from sparselens.dashboards.heads.scatter import correlation, figure, points
from sparselens.dashboards.heads.score import options, preferred, scores, whose
from sparselens.dashboards.heads.score_value import Values, intervals, values
from sparselens.dashboards.page import Page
from sparselens.dashboards.pages import heads
from sparselens.dashboards.query import Source
from sparselens.dashboards.selection import Box, Selection

NAMES = ["L0H0", "L0H1", "L1H0", "L1H1"]


@pytest.fixture(scope="module")
def source(needles: Path) -> Source:
    return Source(needles)


@pytest.fixture(scope="module")
def selection(source: Source) -> Selection:
    return replace(settle(source, Selection(), []).selection, over="all")


def of(source: Source, selection: Selection, name: str) -> Values:
    return values(source, scores(source, BASE, RUN)[name], selection)


def test_every_table_about_heads_offers_its_metrics(source: Source) -> None:
    found = scores(source, BASE, RUN)
    assert list(found) == [
        "diffs.write_error", "diffs.kept_mass_nosink", "head_scores.retrieval", "head_stats.entropy",
        "head_stats.density",
    ]  # fmt: skip
    assert found["head_scores.retrieval"].sides == ("a",)
    assert found["head_stats.entropy"].sides == ("a", "b", "diff")
    assert [len(group["items"]) for group in options(found)] == [2, 1, 2]


def test_the_grid_of_compare_knows_which_heads_cannot_be_told_from_zero(
    source: Source, selection: Selection
) -> None:
    asked = replace(selection, metric="kept_mass_nosink")
    rows = of(source, selection, "diffs.kept_mass_nosink").rows
    crossing = {(row["layer"], row["head"]) for row in rows if row["diff_low"] <= 0 <= row["diff_high"]}
    assert holding_zero(source, asked) == crossing
    assert holding_zero(source, replace(asked, over="prompt")) == set()
    assert holding_zero(source, replace(asked, metric="js")) == set()


def test_a_score_over_all_prompts_is_their_mean_with_an_interval_over_groups(
    source: Source, selection: Selection
) -> None:
    rows = of(source, selection, "diffs.write_error").rows
    prompts = np.stack([write_error(number) for number in range(4)])
    np.testing.assert_allclose([row["diff"] for row in rows], prompts.mean(0), rtol=1e-6)
    families = ["pet", "pet", "passkey", "passkey"]
    for column, row in enumerate(rows):
        wanted = clustered_mean(prompts[:, column], families)
        np.testing.assert_allclose([row["diff_low"], row["diff_high"]], [wanted.low, wanted.high], rtol=1e-5)


def test_a_difference_is_paired_by_prompt_and_one_prompt_has_no_interval(
    source: Source, selection: Selection
) -> None:
    rows = of(source, selection, "head_stats.entropy").rows
    assert [(row["diff"], row["diff_low"], row["diff_high"]) for row in rows] == [(-1.0, -1.0, -1.0)] * 4
    one = of(source, replace(selection, over="prompt", prompt="prompt-1"), "head_stats.entropy").rows
    assert [row["a"] for row in one] == [2.0, 3.0, 4.0, 5.0]
    assert {row["a_low"] for row in one} == {None}


def test_a_head_without_a_number_in_some_prompts_is_averaged_over_the_others() -> None:
    numbers = np.array([[1.0, np.nan], [3.0, 5.0], [2.0, np.nan]])
    mean, low, high = intervals(numbers, ["a", "b", "c"])
    np.testing.assert_allclose(mean, [2.0, 5.0])
    assert low[0] < 2.0 < high[0]
    assert low[1] == high[1] == 5.0


def test_what_an_analysis_measured_is_shown_with_its_own_interval_and_words(
    source: Source, selection: Selection
) -> None:
    found = of(source, selection, "head_scores.retrieval")
    np.testing.assert_allclose([row["a"] for row in found.rows], RETRIEVAL)
    assert found.rows[2]["a_high"] == pytest.approx(1.0)
    assert found.over["a"] == "rows generated · needles(n=8) · n 8 in 4 groups · analyse roles"
    assert found.score.meaning == "hits ÷ tokens"


def test_a_side_that_the_trace_lacks_is_replaced(source: Source) -> None:
    found = scores(source, BASE, RUN)
    assert whose(found["head_scores.retrieval"], "b") == "a"
    assert whose(found["diffs.write_error"], "a") == "diff"
    assert whose(found["head_stats.entropy"], "diff") == "diff"
    assert preferred(found, "nothing", but="diffs.write_error") == "head_scores.retrieval"


def test_the_page_settles_its_fields_and_says_what_it_replaced(source: Source, selection: Selection) -> None:
    said: list[str] = []
    settled = heads.settle(source, replace(selection, score="head_scores.beauty"), said)
    assert (settled.score, settled.whose) == ("diffs.write_error", "diff")
    assert (settled.x, settled.x_whose, settled.y) == ("head_scores.retrieval", "a", "diffs.write_error")
    assert said == ["There is no score 'head_scores.beauty' for these runs; 'diffs.write_error' was chosen."]
    assert heads.settle(source, settled, []) == settled


def test_a_and_b_share_one_scale_and_differences_are_centred(source: Source, selection: Selection) -> None:
    found = of(source, selection, "head_stats.entropy")
    assert score_range(found, "a") == score_range(found, "b") == (0.0, 5.5)
    assert score_range(found, "diff") == (-1.0, 1.0)
    drawn = grid_figure(found, "a", (3, 2), 2)
    assert drawn["values"] == [2.5, 3.5, 4.5, 5.5, None, None]
    assert drawn["texts"][-1] == "not in the trace"


def test_the_finder_ranks_cuts_and_follows_the_rectangle(source: Source, selection: Selection) -> None:
    found = of(source, selection, "diffs.write_error")
    asked: dict[str, Any] = {"top": 2, "order": "high", "among": None}
    assert [row["head_name"] for row in ranked(found, "diff", {}, **asked)] == ["L1H0", "L1H1"]
    assert [row["head_name"] for row in ranked(found, "diff", {}, **asked | {"order": "low"})] == NAMES[:2]
    across = points(of(source, selection, "head_scores.retrieval"), "a", found, "diff")
    among = inside(Box(0.01, 0.3, 0, 9), across)
    assert among == {"L0H1", "L1H1"}
    rows = ranked(found, "diff", roles(source, BASE), **asked | {"top": 0, "among": among})
    assert [row["head_name"] for row in rows] == ["L1H1", "L0H1"]
    assert rows[0]["roles"] == "retrieval head"
    assert both(among, {"L1H1", "L1H0"}) == {"L1H1"}
    assert both(None, {"L1H1"}) == both({"L1H1"}, None) == {"L1H1"}
    assert both(None, None) is None


def test_the_scatter_plot_holds_both_scores_of_every_head(source: Source, selection: Selection) -> None:
    x, y = of(source, selection, "head_scores.retrieval"), of(source, selection, "diffs.write_error")
    found = points(x, "a", y, "diff")
    drawn = figure(found, ("x", "y"), {(1, 0): "retrieval head"}, "L1H0", Box(0.5, 1, 0, 9))
    shown = {
        tuple(at[:2]): (x, y)
        for each in drawn.data
        for at, x, y in zip(each.customdata, each.x, each.y, strict=True)
    }
    assert shown == {(point["layer"], point["head"]): (point["x"], point["y"]) for point in found}
    assert drawn.data[1].text == ("L1H0",)
    assert [each.selectedpoints for each in drawn.data] == [(), (0,)]
    assert correlation(found) == pytest.approx(1.0)
    assert correlation(found[:2]) is None


def test_small_maps_share_one_scale_and_one_image_a_side(
    source: Source, selection: Selection, needles: Path
) -> None:
    at = replace(selection, layer=1, prompt="prompt-0")
    found = layer_maps(source, at)
    assert found["a"].shape == (2, 4, 4)
    seen = np.tril(np.ones((4, 4), bool))
    np.testing.assert_allclose(found["b"][1][seen], 0.4, atol=1e-3)
    client = create_app(needles).server.test_client()
    answer = client.get(f"/view/layer.png?a={BASE}&b={RUN}&prompt=prompt-0&layer=1&side=b&theme=dark&seen=1")
    assert Image.open(BytesIO(answer.data)).size == (8, 4)
    assert client.get(f"/view/layer.png?a={BASE}&prompt=prompt-9&layer=1").status_code == 400
    assert "data-cell='L1H1'" in str(multiples_figure(found, at, {0: "0.5"}, 0, "1"))


@pytest.mark.parametrize("text", ["1~2~3", "2~1~0~1", "0~nan~0~1", "a~b~c~d", "0~inf~0~1"])
def test_a_rectangle_that_is_none_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match="rectangle"):
        Box.parse(text)
    assert Box.parse("0.1~0.5~-2~3") == Box(0.1, 0.5, -2, 3)


def test_a_page_without_fields_of_its_own_settles_none() -> None:
    assert Page("x", "/x", 0, lambda: None, lambda _app, _source: None).settle is None


@pytest.fixture(scope="module")
def served(needles: Path) -> Iterator[str]:
    yield from browsing.served(needles)


@pytest.mark.browser
@pytest.mark.timeout(480)
def test_choosing_a_head_anywhere_on_the_page_selects_it_and_the_link_brings_it_back(
    visit: Any, served: str
) -> None:
    page = visit(f"{served}heads?over=all&layer=0&head=0")
    page.wait_for_selector(".finder .link")
    assert page.locator(".finder .link").all_inner_texts() == ["L1H0", "L1H1", "L0H1", "L0H0"]
    page.wait_for_selector(".multiple .tile-frame")
    page.wait_for_selector("#scatter .points path")
    page.click('.cell[data-cell="L1H1"]')
    page.wait_for_selector("#chosen-head:has-text('L1H1')")
    page.wait_for_selector('.tile-head[data-cell="L1H1"]')
    page.click('.finder .link:has-text("L1H0")')
    page.wait_for_selector("#chosen-head:has-text('retrieval head (strong)')")
    assert (browsing.chosen(page)["layer"], browsing.chosen(page)["head"]) == ("1", "0")
    page.click('[data-option="order=low"]')
    page.wait_for_function("document.querySelector('.finder .link').textContent === 'L0H0'")
    page.reload()
    page.wait_for_selector('.cell[data-cell="L1H0"][aria-current]')
    page.wait_for_function("document.querySelector('.finder .link')?.textContent === 'L0H0'")
    browsing.shot(page, "heads")
    page.goto(f"{served}heads?over=all&only=L1H1,L0H1")
    page.wait_for_selector("#finder-note:has-text('Only the 2 heads')")
    assert page.locator(".finder .link").all_inner_texts() == ["L1H1", "L0H1"]
    page.wait_for_selector(".cell.aside")
    assert page.locator(".cell:not(.aside)").count() == 2
    page.keyboard.press("Escape")
    page.wait_for_function("document.querySelectorAll('.finder .link').length === 4")
    assert page.locator(".cell.aside").count() == 0


@pytest.mark.browser
@pytest.mark.timeout(480)
def test_a_trace_without_diffs_or_scores_still_draws_and_an_empty_one_says_what_to_run(
    visit: Any, long_served: str, empty_served: str
) -> None:
    page = visit(f"{long_served}heads?score=head_stats.sink_mass", width=390, height=800)
    page.wait_for_selector(".cell[aria-current]")
    assert page.locator(".cell").count() == 270
    page.wait_for_selector(".multiple .tile-frame")
    assert page.locator(".multiple").count() == 9
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.goto(f"{empty_served}heads")
    page.wait_for_selector("#notices .command")
    assert "sparselens capture" in page.inner_text("#notices")
    assert "Traceback" not in page.content()
