"""What giving heads back repaired: the restores of the pair alone, as a sentence and as bars on one scale."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from needle_findings import write_restore
from needle_trace import BASE, RUN

from sparselens.dashboards.compare.repair import Repair, bars, highest, repair_figure, repair_words, repairs
from sparselens.dashboards.query import Source
from sparselens.dashboards.selection import Selection

PAIR = Selection(a=BASE, b=RUN)


@pytest.fixture(scope="module")
def found(needles: Path) -> list[Repair]:
    return repairs(Source(needles), PAIR)


def test_the_restore_of_the_pair_is_found_and_no_other(needles: Path, found: list[Repair]) -> None:
    (one,) = found
    assert [row["n_heads"] for row in one.sets] == [1, 2]
    assert (one.run["answer_nll"], one.base["answer_nll"]) == (2.1, 0.1)
    assert one.random(one.sets[1])["gap_closed"] == 0.05
    assert one.random(one.sets[0]) == {}
    assert repairs(Source(needles), Selection(a=RUN, b=BASE)) == []


def test_the_sentence_is_of_the_set_that_has_random_heads_beside_it(needles: Path) -> None:
    said = repair_words(Source(needles), PAIR)
    assert said.startswith(
        "Given back: answer NLL 0.10 → 2.10; 2 heads (ranked by write_error) close 90.0 % ["
    )
    assert "random heads of the same layers 5.0 % [" in said


def test_a_gap_that_may_be_none_has_no_shares(needles: Path, tmp_path: Path) -> None:
    shutil.copytree(needles, tmp_path / "t")
    write_restore(tmp_path / "t", RUN, gap=(0.1, -0.2, 0.4))
    said = repair_words(Source(tmp_path / "t"), PAIR)
    assert "cannot be told from 0" in said
    assert "close" not in said


def test_bars_share_one_scale_and_say_their_intervals(found: list[Repair]) -> None:
    (one,) = found
    assert [label for label, _, _ in bars(one, one.sets[1])] == [
        "BASE",
        "2 heads (ranked by write_error) back",
        "RUN",
    ]
    assert highest(found) == pytest.approx(2.2)
    said = str(repair_figure(one, highest(found)))
    assert "0.30 [0.20, 0.40]" in said
    assert f"'width': '{100 * 0.3 / 2.2:.3f}%'" in said


def test_a_trace_without_restores_has_no_sentence(trace: Path) -> None:
    source: Any = Source(trace)
    assert repair_words(source, Selection(a="run-0-dense", b="run-1-window")) == ""
    assert repair_words(source, Selection(a="run-0-dense")) == ""
