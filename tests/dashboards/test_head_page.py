"""The Head page: best prompts, studies, scores, commands that the parser takes, and a walk through the page."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browsing
import numpy as np
import pytest
from head_trace import BASE, ERRORS, POLICY, PROMPTS, RUN

from sparselens.analyses.analysis import parse
from sparselens.analyses.cause.command import written
from sparselens.dashboards.head.command import commands
from sparselens.dashboards.head.number import SCORES, head_roles, role_chips, scores_figure
from sparselens.dashboards.head.prompt import PROMPTS as BEST
from sparselens.dashboards.head.prompt import prompts_figure
from sparselens.dashboards.head.studied import MARK, marked, of_pair, ranks_figure, sets
from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.retrieval.study import TRIALS
from sparselens.dashboards.selection import Selection
from sparselens.storage.writer import RunWriter

HAND = Selection(a=BASE, b=RUN, prompt="prompt-00", layer=0, head=0)


@pytest.fixture(scope="module")
def hand(hand_head: Path) -> Source:
    return Source(hand_head)


@pytest.fixture(scope="module")
def captured(captured_head: tuple[Path, Selection]) -> tuple[Source, Selection]:
    return Source(captured_head[0]), captured_head[1]


@pytest.fixture(scope="module")
def captured_served(captured_head: tuple[Path, Selection]) -> Iterator[str]:
    """The pages over the capture, at this URL."""
    yield from browsing.served(captured_head[0])


def plain(component: Any) -> str:
    return json.dumps(component, default=lambda part: part.to_plotly_json(), ensure_ascii=False)


def test_best_prompts_are_the_first_and_the_last_five(hand: Source) -> None:
    asked = {
        "a": BASE,
        "b": RUN,
        "layer": 0,
        "head": 0,
        "scope": "end_to_end",
        "rows": "span:last",
        "most": 5,
    }
    rows = hand.records(BEST, **asked)
    order = np.argsort(ERRORS)[::-1]
    assert [row["name"] for row in rows] == [f"prompt {order[i]}" for i in (0, 1, 2, 3, 4, 7, 8, 9, 10, 11)]
    assert [row["place"] for row in rows] == [1, 2, 3, 4, 5, 8, 9, 10, 11, 12]
    assert (rows[0]["norm_a"], rows[0]["norm_b"], rows[0]["n"]) == (2.0, 1.5, 12)
    assert rows[0]["kept_mass"] == pytest.approx(
        0.66
    )  # of A's mass: the local scope, whatever scope is chosen
    said = plain(
        prompts_figure(rows, Selection(**{**HAND.__dict__, "scope": "end_to_end", "rows": "span:last"}))
    )
    assert "2 prompts between" in said
    assert '\\"prompt\\": \\"prompt-09\\"' in said


def test_the_first_set_that_has_the_head_is_ringed(needles: Path) -> None:
    source = Source(needles)
    at = Selection(a="run-0-dense", b="run-1-window", prompt="prompt-0", layer=1, head=1)
    (study,) = of_pair(source, at)
    rows = source.records(TRIALS, study=study["analysis_id"])
    (mine,) = sets(source, study, at)
    assert (mine["order_by"], mine["fold"], mine["first_set"], mine["rank"]) == ("write_error", 0, 2, 2)
    ring = marked(rows, "gap_closed", [mine], "L1H1").data[-1]
    assert ring.name == f"{MARK}L1H1"
    assert (list(ring.x), list(ring.y)) == ([2], [0.9])
    assert "from 2 heads on" in plain(ranks_figure([mine], rows, "gap_closed"))
    (none,) = sets(source, study, Selection(**{**at.__dict__, "layer": 0, "head": 0}))
    assert none["first_set"] is None
    assert len(marked(rows, "gap_closed", [none], "L0H0").data[-1].x) == 0


def test_scores_have_definition_interval_rows_prompts_and_n_without_a_pointer(needles: Path) -> None:
    source = Source(needles)
    rows = source.records(SCORES, a="run-0-dense", b="run-1-window", layer=1, head=0)
    score = next(row for row in rows if row["metric"] == "retrieval")
    assert (score["a"], score["a_low"], score["a_high"]) == pytest.approx((0.9, 0.8, 1.0))
    assert (score["analysis"], score["a_n"], score["a_groups"], score["b"]) == ("roles", 8, 4, None)
    said = plain(scores_figure(rows))
    assert "hits ÷ tokens" in said
    assert "Rows generated; prompts needles(n=8). A: n 8 in 4 groups." in said
    assert '"Details"' in said
    assert head_roles(source, "run-0-dense", 1, 0) == ["retrieval head (strong)"]
    assert "over 0.1" in plain(role_chips("A", ["retrieval head (strong)"]))


def test_the_commands_are_taken_by_the_parser(captured: tuple[Source, Selection]) -> None:
    source, at = captured
    found = commands(source, at)
    assert list(found) == ["restore", "ablate", "attribution"]
    for name, line in found.items():
        words = shlex.split(line)
        assert words[:2] == ["sparselens", "analyse"]
        options = dict(zip(words[3::2], words[4::2], strict=True))
        assert options["--policy"] == POLICY
        assert options["--trace"] == str(source.path)
        analysis, arguments = parse(words[2])
        settled = analysis.settle({**arguments, "policy": options["--policy"]})
        assert analysis.name == name
        assert str(settled.prompts).replace(" ", "") == PROMPTS.replace("140", "[140]")
        if name != "attribution":
            assert (settled.heads, settled.orders) == (("L1H2",), ("given",))
    back = commands(source, Selection(**{**at.__dict__, "a": at.b, "b": at.a}))
    analysis, arguments = parse(shlex.split(back["restore"])[2])
    assert analysis.settle(arguments).base == POLICY


def test_what_is_no_call_is_quoted_for_the_parser() -> None:
    for text in ("my prompts (1).jsonl", "a,b.jsonl", "it's.jsonl", "needles(n=4)", "dense"):
        _, arguments = parse(f"attribution(prompts={written(text)})")
        assert arguments["prompts"] == text


def test_control_characters_of_a_trace_do_not_get_into_a_command(tmp_path: Path) -> None:
    """Pasted into a terminal, they could end the paste and type something else."""
    for run_id, policy in ((BASE, "dense"), (RUN, "a_shape(window=2)\x1b[201~rm x\n")):
        RunWriter.start(tmp_path / "t", run_id, {"policy": policy, "model": "invented"}).finish({})
    with pytest.raises(SourceError, match="holds control characters: no command"):
        commands(Source(tmp_path / "t"), HAND)
    assert commands(Source(tmp_path / "t"), Selection(a=BASE, layer=0, head=0))


@pytest.mark.browser
@pytest.mark.timeout(240)
def test_the_page_walks_from_the_map_to_the_commands(
    captured: tuple[Source, Selection], captured_served: str, visit: Any
) -> None:
    _, at = captured
    page = visit(f"{captured_served}head?a={at.a}&b={at.b}&prompt={at.prompt}&layer=1&head=1&rows=affected")
    page.wait_for_selector(".mass-bar")
    assert page.locator("#head-study .study-graph").count() == 0  # it is drawn when it comes near
    assert "Means over the rows affected of this prompt, 114 queries" in page.inner_text("#mass")
    page.locator("#text .token").nth(100).click()
    page.wait_for_selector("#mass:has-text('query 100 alone')")
    assert page.locator("#mass del").count() > 0
    page.locator("#mass button.chip").first.focus()
    page.keyboard.press("Enter")
    page.click("[data-option='weigh=value']")
    page.wait_for_selector("#reads:has-text('By value: shares of')")
    page.wait_for_selector("#map-how:has-text('Whole rows')")
    page.keyboard.press("Escape")
    page.wait_for_selector("#mass:has-text('rows affected')")
    page.locator("#statistics summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#statistics details[open]").count() == 1
    page.locator("#panel-head-study").scroll_into_view_if_needed()
    page.wait_for_selector("#head-study:has-text('from 2 heads on')")
    page.locator("#panel-scores").scroll_into_view_if_needed()
    page.wait_for_selector("#head-scores:has-text('retrieval')")
    browsing.shot(page, "head-page")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("[data-copy='command-restore']")
    page.wait_for_selector("#status:has-text('Command copied')")
    assert page.evaluate("navigator.clipboard.readText()") == page.inner_text("#command-restore")
    link = page.locator("#head-prompts .link:not([aria-current])").first
    name = link.inner_text()
    link.click()
    page.wait_for_function("id => new URLSearchParams(location.search).get('prompt') !== id", arg=at.prompt)
    page.wait_for_selector(f"#head-prompts .link[aria-current]:has-text('{name}')")
    assert browsing.chosen(page)["head"] == "1"
