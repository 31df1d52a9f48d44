"""The Retrieval page tells which needles were answered, by which heads, and what gives the answer back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import browsing
import pytest
from needle_findings import write_restore
from needle_trace import BASE, LENGTH, LOSS, READ, RUN

from sparselens.dashboards.choice import settle
from sparselens.dashboards.pages import retrieval
from sparselens.dashboards.query import Source
from sparselens.dashboards.retrieval.carrier import carrier_rows, carriers
from sparselens.dashboards.retrieval.needle import ANSWER, NEEDLES, Cell, how, needle_table, verdict
from sparselens.dashboards.retrieval.study import (
    HEADS,
    TRIALS,
    about,
    figure,
    heads_figure,
    series,
    studies,
    table,
    told,
)
from sparselens.dashboards.retrieval.study_panel import restore_command
from sparselens.dashboards.selection import Selection
from sparselens.storage.writer import RunWriter


@pytest.fixture(scope="module")
def source(needles: Path) -> Source:
    return Source(needles)


@pytest.fixture(scope="module")
def selection(source: Source) -> Selection:
    return settle(source, Selection(prompt="prompt-0"), []).selection


@pytest.fixture(scope="module")
def rows(source: Source) -> list[dict[str, Any]]:
    return source.records(NEEDLES, a=BASE, b=RUN)


def plain(component: Any) -> str:
    return json.dumps(component, default=lambda part: part.to_plotly_json(), ensure_ascii=False)


def test_needles_are_told_by_family_depth_and_length_with_the_answers_loss(
    rows: list[dict[str, Any]],
) -> None:
    assert [(row["family"], row["depth"], row["length"]) for row in rows] == [
        ("passkey", 0.1, LENGTH), ("passkey", 0.9, LENGTH), ("pet", 0.1, LENGTH), ("pet", 0.9, LENGTH),
    ]  # fmt: skip
    for row in rows:
        assert row["nll_a"] == pytest.approx(LOSS[BASE][row["depth"]])
        assert row["nll_b"] == pytest.approx(LOSS[RUN][row["depth"]])
        assert (row["forced_a"], row["forced_b"]) == (True, row["depth"] == 0.9)
    assert verdict(rows, pair=True) == (
        "A answers 4 of 4 needles, answer NLL 0.15; B answers 2 of 4 needles, answer NLL 2.15."
    )
    assert "teacher-forced" in how(rows)


def test_a_generated_answer_counts_before_a_forced_one(rows: list[dict[str, Any]]) -> None:
    cell = Cell(({**rows[0], "wrote_a": False, "wrote_b": True},))
    assert (cell.answered("a"), cell.answered("b"), cell.share("diff")) == ((0, 1), (1, 1), 1.0)
    assert "as generated in 1 of 2" in how([rows[0], {**rows[1], "wrote_a": True}])
    assert Cell(()).loss("a") is None
    assert Cell(()).share("diff") is None


def test_the_grid_has_a_button_a_prompt_and_side_and_means_over_families(rows: list[dict[str, Any]]) -> None:
    said = plain(needle_table(rows, "nll", "prompt-0", pair=True))
    assert said.count('"Button"') == 4 * 3
    assert said.count('"aria-current": "true"') == 3
    assert "all families, depth 0.1, 32 tokens, B: answer NLL 4.000, answered 0 of 2" in said
    assert "B − A: answer NLL 3.900" in said
    assert plain(needle_table(rows, "answered", "", pair=False)).count('"Button"') == 4


def test_needles_of_other_sets_get_depth_and_length_from_their_spans(tmp_path: Path) -> None:
    with RunWriter.start(tmp_path / "trace", "run-a", {"name": "a"}) as run:
        with run.part(["p"]) as part:
            part.add("prompts", {"name": "mine", "n_tokens": 100})
            part.add("spans", {"name": ["needle", "answer"], "start": [52, 98], "stop": [60, 100]})
            part.add("predictions", {"pos": [98, 99], "nll": [1.0, 3.0]})
        run.finish({})
    (row,) = Source(tmp_path / "trace").records(NEEDLES, a="run-a", b=None)
    assert (row["family"], row["depth"], row["length"], row["nll_a"]) == ("needles", 0.5, 100, 2.0)
    assert row["forced_a"] is None
    assert "–" in verdict([{**row, "nll_a": None}], pair=False)


def test_the_planted_head_carries_the_answer_in_the_base_and_not_in_the_run(
    source: Source, selection: Selection
) -> None:
    for over in ("prompt", "all"):
        found = carriers(source, replace(selection, over=over))
        assert found[0]["head_name"] == "L1H0"
        assert (found[0]["mass_a"], found[0]["mass_b"]) == (
            pytest.approx(READ[BASE]),
            pytest.approx(READ[RUN]),
        )
        assert found[0]["retrieval"] == pytest.approx(0.9)
        assert [row["mass_a"] for row in found[1:]] == [0, 0, 0]
    assert found[0]["write_error"] == pytest.approx(1.15)
    assert carrier_rows(found, {(1, 0): "retrieval head"})[0]["interval"] == "[0.800, 1.000]"
    assert carriers(source, replace(selection, prompt="none")) == []


def test_the_answer_is_read_from_the_text(source: Source) -> None:
    assert source.first(ANSWER, a=BASE, b=RUN, prompt="prompt-0")["answer"] == " w28 w29"


def test_names_from_a_trace_are_no_markup(rows: list[dict[str, Any]]) -> None:
    named = [{**rows[0], "prompt_id": 'p"</b>'}]
    (go,) = _buttons(needle_table(named, "nll", "", pair=False))
    assert json.loads(go)["prompt"] == 'p"</b>'
    trial = {"kind": "run_dense", "order_by": "<b>x</b>", "n_heads": 1, "metric": "gap_closed", "value": 0.5}
    trial |= dict.fromkeys(("matched", "draw", "ci_low", "ci_high", "n", "n_clusters"))
    assert figure([trial], "gap_closed").data[1].name == "&lt;b&gt;x&lt;/b&gt;"


def _buttons(component: Any) -> list[str]:
    """What the buttons of a component put into the URL."""
    found = [getattr(component, "data-go")] if hasattr(component, "data-go") else []
    children = getattr(component, "children", None)
    for child in children if isinstance(children, list) else [children]:
        found += _buttons(child) if child is not None else []
    return found


def test_the_curve_is_the_rows_with_random_heads_apart(source: Source) -> None:
    (study,) = studies(source, RUN)
    found = source.records(TRIALS, study=study["analysis_id"])
    metric = told(found, "change")
    assert metric == "gap_closed"
    lines = series(found, metric)
    assert {name: [row["value"] for row in each] for name, each in lines.items()} == {
        "write_error": [0.5, 0.9], "the policy, wider": [0.02], "random, as write_error": [0.05],
    }  # fmt: skip
    drawn = {trace.name: trace for trace in figure(found, metric).data}
    assert list(drawn["write_error"].y) == [0.5, 0.9]
    assert list(drawn["write_error"].error_y.array) == pytest.approx([0.1, 0.1])
    assert list(drawn["single random sets"].y) == [0.0, 0.1]
    assert "0.850 [0.750, 0.950]" in plain(table(found, metric))
    assert len(figure(found, "answer_nll").layout.shapes) == 2, "the run itself and its base"
    heads = plain(heads_figure(source.records(HEADS, study=study["analysis_id"])))
    assert "L1H0" in heads


def test_a_gap_that_may_be_none_is_said_to_be(source: Source, selection: Selection, tmp_path: Path) -> None:
    (study,) = studies(source, RUN)
    lines = " ".join(
        about(source.records(TRIALS, study=study["analysis_id"]), study, "gap_closed", selection)
    )
    assert "rises by 2.000 [1.000, 3.000] nats" in lines
    assert "Random heads: 2 sets" in lines
    assert "cannot be told from 0" not in lines
    write_restore(tmp_path / "flat", RUN, gap=(0.2, -0.1, 0.5))
    flat = Source(tmp_path / "flat")
    (other,) = studies(flat, "")
    lines = " ".join(
        about(flat.records(TRIALS, study=other["analysis_id"]), other, "gap_closed", Selection())
    )
    assert "cannot be told from 0" in lines
    assert "Not of B's policy" not in lines


def test_the_page_takes_the_study_of_the_chosen_run_and_says_what_it_replaced(
    source: Source, selection: Selection
) -> None:
    said: list[str] = []
    (study,) = studies(source, RUN)
    assert retrieval.settle(source, selection, said).study == study["analysis_id"]
    assert said == []
    retrieval.settle(source, replace(selection, study="nobody"), said)
    assert said == ["There is no study 'nobody' in this trace, another was chosen."]
    assert '--policy "sliding_window(window=8)"' in restore_command(source, selection)


@pytest.fixture(scope="module")
def served(needles: Path) -> Iterator[str]:
    yield from browsing.served(needles)


@pytest.mark.browser
@pytest.mark.timeout(480)
def test_a_needle_selects_its_prompt_and_a_head_opens(visit: Any, served: str) -> None:
    page = visit(f"{served}retrieval?prompt=prompt-0")
    page.wait_for_selector("#needles .needle")
    assert "B answers 2 of 4 needles" in page.inner_text("#needle-verdict")
    page.wait_for_selector("#study .js-plotly-plot .lines path", state="attached")
    page.wait_for_selector("#carriers .link")
    browsing.shot(page, "retrieval")
    page.click('[aria-label^="pet, depth 0.9, 32 tokens, B:"]')
    page.wait_for_function("new URLSearchParams(location.search).get('prompt') === 'prompt-1'")
    page.wait_for_selector('[aria-label^="pet, depth 0.9, 32 tokens, A:"][aria-current]')
    page.click('#carriers .link:has-text("L1H0")')
    page.wait_for_selector("#head-title:has-text('L1H0')")


@pytest.mark.browser
@pytest.mark.timeout(480)
def test_a_trace_without_studies_and_an_empty_one_say_what_to_run(
    visit: Any, long_served: str, empty_served: str
) -> None:
    page = visit(f"{long_served}retrieval", width=390, height=800)
    page.wait_for_selector("#study .command")
    assert "analyse restore" in page.inner_text("#study")
    page.wait_for_selector("#needles .needle")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.goto(f"{empty_served}retrieval")
    page.wait_for_selector("#notices .command")
    assert "Traceback" not in page.content()
