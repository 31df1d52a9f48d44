"""The lists of which one entry is chosen: what they show is what the URL says, and they set it."""

from __future__ import annotations

from typing import Any

import pytest
from browsing import chosen

from sparselens.dashboards.drawing import tree
from sparselens.dashboards.picker import filled

SHOWN = "field => document.querySelector(`select[data-choose=${field}]`)?.value"


def test_entries_name_themselves_or_have_a_label_or_are_grouped() -> None:
    grouped = {"group": "of heads", "items": [{"value": "v", "label": "<b>V</b>"}, "w"]}
    label = tree(filled("x", "X", "The score along x", ["u", grouped], "v", wide=True))
    select = label[2]["list"][1]
    assert select[:2] == [
        "select",
        {"class": "wide", "data-choose": "x", "aria-label": "The score along x"},
    ]
    plain, group = select[2]["list"]
    assert plain == ["option", {"value": "u"}, "u"]
    assert group[:2] == ["optgroup", {"label": "of heads"}]
    assert group[2]["list"] == [
        ["option", {"value": "v", "selected": ""}, "<b>V</b>"],
        ["option", {"value": "w"}, "w"],
    ]


@pytest.mark.browser
@pytest.mark.timeout(240)
def test_a_choice_goes_into_the_url_and_the_way_back_shows_what_was_chosen_before(
    visit: Any, served: str
) -> None:
    page = visit(f"{served}?q=44&brush=40-44")
    page.wait_for_function("document.querySelectorAll('select[data-choose=b] option').length === 3")
    page.wait_for_function(
        "document.querySelectorAll('select[data-choose=metric] option:disabled').length > 0"
    )
    before = chosen(page)
    page.select_option("select[data-choose=prompt]", index=1)
    page.wait_for_function("() => new URLSearchParams(location.search).get('prompt') === 'prompt-1'")
    assert not {"q", "brush"} & set(chosen(page))
    page.wait_for_function("!document.querySelector('select[data-choose=metric] option:disabled')")
    page.select_option("select[data-choose=metric]", "js")
    page.wait_for_selector("#grid-legend:has-text('js')")
    page.select_option("select[data-choose=b]", "run-1-window")
    page.wait_for_function("() => new URLSearchParams(location.search).get('b') === 'run-1-window'")
    for _ in range(3):
        page.go_back()
    page.wait_for_function(f"({SHOWN})('prompt') === '{before['prompt']}'")
    assert page.evaluate(SHOWN, "b") == before["b"] == "run-2-sink-window"
    assert page.evaluate(SHOWN, "metric") == before["metric"] == "write_error"
    page.click("nav >> text=Heads")
    page.wait_for_selector("#score-list select")
    page.select_option("select[data-choose=x]", index=2)
    asked = page.evaluate(SHOWN, "x")
    page.wait_for_function("x => new URLSearchParams(location.search).get('x') === x", arg=asked)
    assert page.evaluate(SHOWN, "x") == asked


@pytest.mark.browser
@pytest.mark.timeout(240)
def test_runs_are_put_side_by_side_and_taken_away_one_by_one(visit: Any, served: str) -> None:
    page = visit(f"{served}?over=all")
    page.click(".run-list summary")
    for at in range(2):
        page.locator(".run-list .option").nth(at).click()
        page.wait_for_function(
            "n => document.querySelectorAll('.run-list .option[aria-pressed=true]').length === n", arg=at + 1
        )
    assert chosen(page)["runs"] == "run-1-window,run-2-sink-window"
    page.wait_for_function("document.querySelectorAll('.lane-cell').length === 24")
    page.locator(".run-list .option").first.click()
    page.wait_for_function("document.querySelectorAll('.lane-cell').length === 12")
    assert chosen(page)["runs"] == "run-2-sink-window"
