"""Defaults: a bare link opens on the pair, the rows and the head that matter; wrong names are said."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparselens.dashboards.choice import parents, settle
from sparselens.dashboards.query import Source
from sparselens.dashboards.selection import Selection


@pytest.fixture(scope="module")
def source(trace: Path) -> Source:
    return Source(trace)


def test_a_bare_link_opens_on_base_and_its_newest_run_and_the_worst_head(source: Source) -> None:
    chosen = settle(source, Selection(), []).selection
    assert (chosen.a, chosen.b) == ("run-0-dense", "run-2-sink-window")
    assert (chosen.rows, chosen.scope, chosen.metric) == ("span:answer", "end_to_end", "write_error")
    worst = source.first(
        "SELECT layer, head FROM diffs WHERE run_b = 'run-2-sink-window' AND rows = 'span:answer' "
        "AND scope = 'end_to_end' AND prompt_id = 'prompt-0' ORDER BY write_error DESC LIMIT 1"
    )
    assert (chosen.layer, chosen.head) == (worst["layer"], worst["head"])


def test_a_run_can_be_named_and_brings_its_base(source: Source) -> None:
    chosen = settle(source, Selection(b="window"), []).selection
    assert (chosen.a, chosen.b) == ("run-0-dense", "run-1-window")


def test_swapped_runs_stay_swapped(source: Source) -> None:
    chosen = settle(source, Selection(a="run-1-window", b="run-0-dense"), []).selection
    assert (chosen.a, chosen.b) == ("run-1-window", "run-0-dense")


def test_a_full_selection_is_left_as_it_is(source: Source) -> None:
    first = settle(source, Selection(), []).selection
    again = settle(source, first, [])
    assert again.selection == first
    assert again.notices == []


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Selection(a="nobody"), "no run 'nobody'"),
        (Selection(prompt="x"), "no prompt 'x'"),
        (Selection(rows="span:x"), "no rows 'span:x'"),
        (Selection(layer=77, head=0), "no head L77H0"),
        (Selection(metric="beauty"), "no metric 'beauty'"),
    ],
)
def test_what_the_trace_does_not_have_is_replaced_and_said(
    source: Source, asked: Selection, said: str
) -> None:
    settled = settle(source, asked, [])
    assert said in " ".join(settled.notices)
    assert settled.selection.prompt == "prompt-0"


def test_shape_and_groups_come_from_the_trace(source: Source) -> None:
    settled = settle(source, Selection(), [])
    assert (settled.shape, settled.group) == ((3, 4), 2)


def test_parents_may_be_a_list_or_a_text() -> None:
    assert parents({"parents": ["a", "b"]}) == parents({"parents": "a, b"}) == ["a", "b"]
    assert parents({"parents": None}) == []
