"""The page Frontier shows what sweeps stored: the figure's data equals the rows, off-label points have no rank."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browsing
import pytest
from plotly.utils import PlotlyJSONEncoder
from sweep_trace import METHODS, METRICS

from sparselens.analyses.sweep.frontier import POINTS, ranked, wide
from sparselens.dashboards.app import create_app
from sparselens.dashboards.pages.frontier import sections
from sparselens.dashboards.query import Source


def plain(component: Any) -> str:
    return json.dumps(component, cls=PlotlyJSONEncoder)


def graphs(component: Any) -> list[Any]:
    found = [component] if type(component).__name__ == "Graph" else []
    children = getattr(component, "children", None)
    for child in children if isinstance(children, list | tuple) else [children]:
        if hasattr(child, "to_plotly_json"):
            found += graphs(child)
    return found


def test_the_figures_hold_the_stored_numbers(sweep_trace: Path) -> None:
    frame = wide(Source(sweep_trace).frame(POINTS, analysis=None))
    (section,) = sections(frame)
    drawn = graphs(section)
    assert len(drawn) == len(METRICS)
    traces = {trace.name: trace for trace in drawn[1].figure.data}
    for name, (value, _, _) in METHODS.items():
        assert list(traces[name].x) == [0.1, 0.2]
        assert list(traces[name].y) == pytest.approx([value + 0.1, value + 0.2])
    assert list(traces["random of the same shape"].y) == [0.3] * 6
    assert set(traces["trained"].marker.symbol) == {"circle-open"}
    assert set(traces["half_dense"].marker.symbol) == {"square"}


def test_off_label_and_dense_points_are_listed_without_a_rank(sweep_trace: Path) -> None:
    (section,) = sections(wide(Source(sweep_trace).frame(POINTS, analysis=None)))
    text = plain(section)
    assert "off-label" in text
    assert "50% of calls dense" in text
    frame = wide(Source(sweep_trace).frame(POINTS, analysis=None))
    ranks = ranked(frame, "recalled_mass").set_index("method")["rank"]
    assert ranks["window"].tolist() == [1, 1]
    assert ranks[["trained", "half_dense"]].isna().all()


def ask(path: Path) -> str:
    """What the page's callback answers."""
    client = create_app(path).server.test_client()
    spec = next(
        each for each in client.get("/_dash-dependencies").json if each["output"] == "frontier.children"
    )
    inputs = [
        {"id": json.loads(each["id"]), "property": each["property"], "value": None} for each in spec["inputs"]
    ]
    body = {
        "output": spec["output"], "outputs": {"id": "frontier", "property": "children"}, "inputs": inputs,
        "changedPropIds": [],
    }  # fmt: skip
    answer = client.post("/_dash-update-component", json=body)
    assert answer.status_code == 200
    return str(answer.text)


def test_the_page_answers_with_a_section_or_says_what_to_run(sweep_trace: Path, trace: Path) -> None:
    assert "window(k=0.1)" in ask(sweep_trace)
    assert "sparselens sweep" in ask(trace)


@pytest.fixture(scope="module")
def served(sweep_trace: Path) -> Iterator[str]:
    yield from browsing.served(sweep_trace)


@pytest.mark.browser
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("dark", "width"), [(False, 1440), (True, 480)])
def test_the_page_draws_a_figure_a_metric_and_the_table(
    visit: Any, served: str, dark: bool, width: int
) -> None:
    page = visit(f"{served}frontier", dark=dark, width=width)
    page.wait_for_function("document.querySelectorAll('#frontier .main-svg .points path').length > 0")
    assert page.locator("#frontier .js-plotly-plot").count() == len(METRICS)
    rows = page.locator("#frontier tbody tr")
    assert rows.count() == 2 * len(METHODS)
    assert "window(k=0.1)" in (rows.nth(0).text_content() or "")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    browsing.shot(page, f"frontier-{'dark-narrow' if dark else 'light'}")
