"""The story in a real browser: home → worst head → its page → hide sinks → swap → SQL → link elsewhere."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
from browsing import chosen, shot

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]


def test_home_opens_on_the_difference_and_a_click_leads_to_the_head(visit: Any, served: str) -> None:
    page = visit(served)
    page.wait_for_selector("#text .token")
    page.wait_for_selector(".cell[aria-current]")
    assert "Answer NLL 0.10 → 3.40" in page.inner_text("#headline")
    assert page.locator("#text .token").count() == 60
    assert page.locator(".cell").count() == 12
    page.wait_for_selector("#keys del")
    assert "Left out" in page.inner_text("#keys")
    shot(page, "compare-light")
    page.click('.cell[data-cell="L1H2"]')
    page.wait_for_function("document.querySelector('#keys-head').textContent === 'L1H2'")
    assert (chosen(page)["layer"], chosen(page)["head"]) == ("1", "2")
    page.click("text=Open head")
    page.wait_for_selector(".map-frame")
    assert page.inner_text("#head-title") == "L1H2"
    assert page.locator(".map-frame").count() == 3
    page.wait_for_selector("#reads:has-text('Query 56')")
    assert "Exact cells" in page.inner_text("#map-how")
    shot(page, "head-light")
    page.go_back()
    page.wait_for_selector(".cell[aria-current]")
    assert page.get_attribute(".cell[aria-current]", "data-cell") == "L1H2"


def test_the_story_from_the_worst_head_to_a_link_that_shows_the_same(visit: Any, served: str) -> None:
    page = visit(served)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.wait_for_selector("#headline a[data-go]")
    worst = page.inner_text("#headline a[data-go]")
    page.click("#headline a[data-go]")
    page.wait_for_selector(f"#head-title:has-text('{worst}')")
    page.wait_for_selector("#reads:has-text('Query 56')")
    page.locator("#text .token").nth(45).click()
    page.wait_for_selector("#reads:has-text('Query 45')")
    page.click("text=Hide sinks")
    page.wait_for_selector("#map-how:has-text('hidden')")
    before = chosen(page)
    page.keyboard.press("s")
    page.wait_for_function(f"new URLSearchParams(location.search).get('a') === '{before['b']}'")
    page.wait_for_selector("#reads:has-text('Query 45')")
    page.click("nav >> text=SQL")
    page.click(".sample:has-text('What this head reads')")
    page.wait_for_selector("#result .ag-row")
    page.wait_for_selector("#query-state:has-text('rows')")
    query = page.input_value("#query")
    assert f"e.layer = {worst[1]}" in query
    assert f"e.run_id = '{before['a']}'" in query
    page.click('[data-action="copy"]')
    page.wait_for_selector("#status.shown")
    link = page.evaluate("navigator.clipboard.readText()")
    assert link == page.url
    cells = "#result .ag-center-cols-container [role=gridcell]"
    other = visit(link)
    other.wait_for_selector("#result .ag-row")
    assert other.locator(cells).all_inner_texts() == page.locator(cells).all_inner_texts()
    assert other.input_value("#query") == query
    assert other.url == link
    kept = {
        name: value
        for name, value in chosen(other).items()
        if name in ("layer", "head", "q", "hide", "prompt")
    }
    assert kept == {"layer": worst[1], "head": worst[3], "q": "45", "hide": "1", "prompt": before["prompt"]}
    other.click("nav >> text='Head'")
    other.wait_for_selector(f"#head-title:has-text('{worst}')")
    other.wait_for_selector("#reads:has-text('Query 45')")
    other.wait_for_selector("#map-how:has-text('hidden')")


def test_a_link_shows_the_same_view_in_a_fresh_browser(visit: Any, served: str) -> None:
    page = visit(f"{served}head?layer=2&head=1")
    page.wait_for_selector(".map-frame")
    page.click("text=Hide sinks")
    page.wait_for_selector("#map-how:has-text('hidden')")
    page.locator("#text .token").nth(45).click()
    page.wait_for_selector("#reads:has-text('Query 45')")
    page.click('[data-action="swap"]')
    page.wait_for_function("new URLSearchParams(location.search).get('a') === 'run-2-sink-window'")
    page.wait_for_selector("#reads:has-text('Query 45')")
    shot(page, "head-swapped")
    seen = ("#head-title", "#map-how", "#reads", "#statistics", ".maps")
    page.wait_for_timeout(400)
    first = [page.inner_text(part) for part in seen]
    other = visit(page.url)
    other.wait_for_selector(".map-frame")
    other.wait_for_selector("#reads:has-text('Query 45')")
    other.wait_for_selector("#statistics table")
    other.wait_for_timeout(400)
    assert [other.inner_text(part) for part in seen] == first
    assert other.url == page.url
    assert other.get_attribute('[data-option="hide=1"]', "aria-pressed") == "true"
    assert other.locator(".token.query").inner_text() == page.locator(".token.query").inner_text()


def point_at(page: Any, pos: int) -> None:
    """Move the pointer over a token, which may stand on two lines, when nothing below it moves any more."""
    page.wait_for_selector("#mass table")
    middle = (
        "e => { e.scrollIntoView({ block: 'center' });"
        " const [r] = [...e.getClientRects()].sort((one, two) => two.width - one.width);"
        " return [r.x + r.width / 2, r.y + r.height / 2]; }"
    )
    page.mouse.move(*page.locator("#text .token").nth(pos).evaluate(middle))


def test_hovering_a_token_shows_what_it_reads_and_who_reads_it(visit: Any, served: str) -> None:
    page = visit(f"{served}head?layer=1&head=2")
    page.wait_for_selector("#reads:has-text('Query 56')")
    point_at(page, 30)
    page.wait_for_selector("#reads:has-text('Query 30')")
    above = page.locator("#text").bounding_box()["y"] + page.evaluate("scrollY")
    point_at(page, 2)
    page.wait_for_selector("#reads:has-text('Query 2:')")
    assert page.locator("#text").bounding_box()["y"] + page.evaluate("scrollY") == above
    point_at(page, 30)
    page.wait_for_selector("#reads:has-text('Query 30')")
    assert "Rain" in page.locator("#text .token").nth(15).inner_text()
    assert page.inner_text("#tip").startswith("#30 ")
    page.click("text=Who reads it")
    point_at(page, 3)
    page.wait_for_selector("#reads:has-text('Key 3:')")
    assert "q" not in chosen(page)


def test_dragging_zooms_all_maps_and_escape_leaves(visit: Any, served: str) -> None:
    page = visit(f"{served}head?layer=1&head=2")
    page.wait_for_selector(".map-frame")
    box = page.locator(".map-frame").nth(1).bounding_box()
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.75 * box["height"], steps=4)
    page.mouse.up()
    page.wait_for_selector('.map-frame[data-shape*=\'"q0":30,"q1":45,"k0":15,"k1":30\']')
    assert (chosen(page)["qs"], chosen(page)["ks"]) == ("30-45", "15-30")
    page.hover(".map-frame >> nth=0", position={"x": 5, "y": 5})
    page.wait_for_selector("#map-readout:has-text('query 30')")
    assert "key 15" in page.inner_text("#map-readout")
    page.keyboard.press("Escape")
    page.wait_for_selector(".map-frame[data-shape*='\"q1\":60']")


def test_keys_move_the_head_the_prompt_and_list_themselves(visit: Any, served: str) -> None:
    page = visit(f"{served}?layer=1&head=1")
    page.wait_for_selector(".cell[aria-current]")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.wait_for_selector('.cell[data-cell="L2H2"][aria-current]')
    page.wait_for_function("document.querySelector('#keys-head').textContent === 'L2H2'")
    page.keyboard.press("]")
    page.wait_for_function("new URLSearchParams(location.search).get('prompt') === 'prompt-1'")
    page.keyboard.press("?")
    assert page.locator("#help[open]").count() == 1
    page.keyboard.press("Escape")
    assert page.locator("#help[open]").count() == 0


def test_sql_opens_heads_and_refuses_attacks_in_one_line(visit: Any, served: str) -> None:
    page = visit(f"{served}sql")
    page.wait_for_selector(".sample")
    page.click(".sample >> nth=0")
    page.wait_for_selector("#result .link")
    head = page.locator("#result .link").first.inner_text()
    shot(page, "sql-light")
    for attack in (
        "COPY runs TO 'stolen.csv'",
        "SELECT * FROM read_csv('/etc/passwd')",
        "WITH x AS (COPY runs TO 'f') SELECT * FROM x",
    ):
        page.fill("#query", attack)
        page.keyboard.press("Control+Enter")
        page.wait_for_function("sql => new URLSearchParams(location.search).get('sql') === sql", arg=attack)
        page.wait_for_selector("#query-problem")
        page.wait_for_timeout(150)
        said = page.inner_text("#query-problem").strip()
        assert said
        assert "\n" not in said
        assert "Traceback" not in said
        assert page.locator("#result").count() == 0
    page.goto(
        f"{served}sql?sql="
        + quote(f"SELECT {head[1]} AS layer, 0 AS head, '<img src=x onerror=alert(1)>' AS x")
    )
    page.wait_for_selector("#result .link")
    assert "<img src=x" in page.inner_text("#result")
    page.click("#result .link")
    page.wait_for_selector("#head-title:has-text('H0')")


def test_runs_choose_a_and_b(visit: Any, served: str) -> None:
    page = visit(f"{served}runs")
    page.wait_for_selector("#runs .badge.on")
    assert "failed: logits" in page.inner_text("#runs")
    page.click('[aria-label="Use window as B"]')
    page.wait_for_function("new URLSearchParams(location.search).get('b') === 'run-1-window'")
    page.wait_for_selector('[aria-label="Use window as B"].on')
    shot(page, "runs-light")


def test_dark_follows_the_system_and_the_toggle_stays(visit: Any, served: str) -> None:
    page = visit(served, dark=True)
    page.wait_for_selector("#keys del")
    theme = "document.documentElement.dataset.theme"
    assert page.evaluate(theme) == "dark"
    shot(page, "compare-dark")
    page.click('[data-action="theme"]')
    assert page.evaluate(theme) == "light"
    page.reload()
    page.wait_for_selector(".cell[aria-current]")
    assert page.evaluate(theme) == "light"


def test_a_narrow_screen_has_one_column_and_no_sideways_scroll(visit: Any, served: str) -> None:
    page = visit(served, width=390, height=800)
    for path in ("", "head", "runs", "sql"):
        page.goto(served + path)
        page.wait_for_selector(".panel")
        page.wait_for_timeout(600)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        shot(page, f"narrow-{path or 'compare'}")


def test_a_long_prompt_and_a_large_model_are_shown(visit: Any, long_served: str) -> None:
    page = visit(long_served)
    page.wait_for_selector(".cell[aria-current]")
    page.wait_for_function("document.querySelectorAll('#text .token').length === 8192")
    assert page.locator(".cell").count() == 270
    for name in ("L0H0", "L12H4", "L29H8"):
        page.click(f'.cell[data-cell="{name}"]')
        page.wait_for_function(f"document.querySelector('#keys-head').textContent === '{name}'")
    shot(page, "compare-8k")
    page.goto(f"{long_served}head?layer=3&head=4")
    page.wait_for_selector(".map-frame")
    page.wait_for_function("document.querySelectorAll('#text .token').length === 8192")
    assert "Pooled, 128 × 128" in page.inner_text("#map-how")
    shot(page, "head-8k")


def test_an_empty_trace_says_what_to_run(visit: Any, empty_served: str) -> None:
    page = visit(empty_served)
    for path in ("", "head", "runs", "sql"):
        page.goto(empty_served + path)
        page.wait_for_selector("#notices .command")
        assert "sparselens capture" in page.inner_text("#notices")
        assert "Traceback" not in page.content()
        shot(page, f"empty-{path or 'compare'}")
