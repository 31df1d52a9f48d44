"""The Features page says what the tables say: of a real small model, a real SAE and two policies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browsing
import numpy as np
import pytest

from sparselens.dashboards.features.feature import CHANGES, OVER, PAIRS, SOURCES, TEXT, sentence, text_figure
from sparselens.dashboards.features.panel import card_figure, cards
from sparselens.dashboards.pages.features import settle
from sparselens.dashboards.query import Source
from sparselens.dashboards.selection import Selection
from sparselens.storage.trace import Trace


@pytest.fixture(scope="module")
def source(feature_trace: Path) -> Source:
    """The pages' source over a trace with features of a base and a window, and a run without any."""
    return Source(feature_trace)


@pytest.fixture(scope="module")
def selection(source: Source) -> Selection:
    base, narrow, _ = (run.run_id for run in Trace.open(source.path).runs() if run.record.kind == "capture")
    prompt = source.first("SELECT prompt_id FROM prompts ORDER BY name")["prompt_id"]
    return settle(source, Selection(a=base, b=narrow, prompt=prompt, rows="nowhere"), [])


def test_the_page_opens_on_the_feature_that_changed_most(source: Source, selection: Selection) -> None:
    assert selection.rows == "span:answer"
    asked = {"a": selection.a, "b": selection.b, "sae": selection.sae}
    rows = source.records(CHANGES, rows="span:answer", most=400, **asked)
    assert rows[0]["feature"] == selection.feature
    assert [abs(row["change"]) for row in rows] == sorted((abs(row["change"]) for row in rows), reverse=True)


def test_what_the_trace_does_not_have_is_said_and_replaced(source: Source, selection: Selection) -> None:
    said: list[str] = []
    asked = Selection(a=selection.a, b=selection.b, prompt=selection.prompt, sae="other", feature=64)
    settled = settle(source, asked, said)
    assert (settled.sae, settled.feature) == (selection.sae, selection.feature)
    assert "No SAE 'other'" in said[0]
    assert "features 0 to 63, not 64" in said[1]


def test_a_pair_without_features_is_told_how_to_get_some(source: Source, selection: Selection) -> None:
    wide = [run.run_id for run in Trace.open(source.path).runs() if run.record.kind == "capture"][2]
    settled = settle(source, Selection(a=selection.a, b=wide, prompt=selection.prompt), [])
    assert (settled.sae, settled.feature) == ("", None)
    assert source.records(PAIRS, a=selection.a, b=wide) == []


def test_the_sentence_counts_the_tokens_that_are_not_compared(source: Source, selection: Selection) -> None:
    asked = {"a": selection.a, "b": selection.b, "sae": selection.sae}
    row = next(row for row in source.records(OVER, **asked) if row["rows"] == "all")
    assert f"Over {row['n_compared']:,} tokens of 2 prompts" in sentence(row)
    assert ("not compared" in sentence(row)) == (row["n_compared"] < row["n_rows"])


def test_the_text_is_shaded_by_the_stored_activations(source: Source, selection: Selection) -> None:
    asked = {name: getattr(selection, name) for name in ("a", "b", "prompt", "sae", "feature")}
    rows = source.records(TEXT, **asked)
    figure = text_figure(rows, [], selection.feature or 0)
    stored = source.records(
        "SELECT pos, activation FROM features WHERE run_id = $a AND prompt_id = $prompt AND sae = $sae"
        " AND feature = $feature",
        **{name: asked[name] for name in ("a", "prompt", "sae", "feature")},
    )
    assert {pos for pos, value in enumerate(figure["values"]["a"]) if value} == {row["pos"] for row in stored}
    assert len(figure["texts"]) == len(rows) > 40
    largest = max(value or 0 for name in ("a", "b") for value in figure["values"][name])
    assert max(level or 0 for name in ("a", "b") for level in figure["levels"][name]) == (
        32 if largest else 0
    )


def test_the_card_of_a_and_of_b_are_of_their_runs(source: Source, selection: Selection) -> None:
    a, b = cards(source, selection)
    assert b is not None
    assert (a.feature, b.feature) == (selection.feature, selection.feature)
    assert (a.policy, b.policy) == ("dense", "a_shape(sink=1,window=4)")
    assert card_figure(a, b)
    assert card_figure(a, None)


def test_listed_parts_and_the_rest_differ_from_the_pre_activation_by_the_bias_alone(
    source: Source, selection: Selection
) -> None:
    given = {"a": selection.a, "b": selection.b, "sae": selection.sae}
    feature = source.first(
        "SELECT feature FROM feature_sources WHERE run_id = $a GROUP BY feature ORDER BY count(*) DESC, feature",
        a=selection.a,
    )["feature"]
    places = source.records(
        "SELECT DISTINCT prompt_id, pos FROM feature_sources WHERE run_id = $a AND feature = $feature",
        a=selection.a,
        feature=feature,
    )
    assert len(places) > 1
    biases = []
    for place in places:
        at = {"prompt": place["prompt_id"], "q": place["pos"], "feature": feature}
        rows = [row for row in source.records(SOURCES, **given, **at) if row["is_a"]]
        biases.append(rows[0]["pre"] - rows[0]["unstored"] - sum(row["value"] for row in rows))
    assert np.ptp(biases) < 1e-4


@pytest.fixture(scope="module")
def served(source: Source) -> Iterator[str]:
    yield from browsing.served(source.path)


@pytest.mark.browser
@pytest.mark.timeout(240)
def test_a_feature_of_the_table_is_shown_in_the_card_the_text_and_the_link(
    visit: Any, served: str, source: Source, selection: Selection
) -> None:
    page = visit(f"{served}features?a={selection.a}&b={selection.b}")
    page.wait_for_selector("#feature-table .link")
    page.wait_for_selector("#text .token")
    page.wait_for_selector(f"#feature-card:has-text('Feature {selection.feature} ')")
    other = page.locator("#feature-table .link").nth(2).inner_text()
    page.locator("#feature-table .link").nth(2).click()
    page.wait_for_selector(f"#feature-card:has-text('Feature {other} ')")
    assert browsing.chosen(page)["feature"] == other
    page.wait_for_selector("#text-legend:has-text('B − A')")
    page.wait_for_selector("#feature-examples h3 >> nth=1")
    told = source.first(
        "SELECT prompt_id, pos, feature FROM feature_sources WHERE run_id = $a LIMIT 1", a=selection.a
    )
    page.goto(
        f"{served}features?a={selection.a}&b={selection.b}&prompt={told['prompt_id']}&feature={told['feature']}"
        f"&q={told['pos']}"
    )
    page.wait_for_selector("#feature-sources .chip")
    assert "pre-activation" in page.inner_text("#feature-sources")
    browsing.shot(page, "features")


@pytest.mark.browser
@pytest.mark.timeout(240)
def test_a_trace_without_features_says_what_to_run(visit: Any, long_served: str, empty_served: str) -> None:
    page = visit(f"{long_served}features", width=390, height=800)
    page.wait_for_selector("#feature-missing .command")
    assert "analyse features --run" in page.inner_text("#feature-missing")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.goto(f"{empty_served}features")
    page.wait_for_selector("#notices .message")
