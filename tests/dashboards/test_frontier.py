"""The page Frontier shows what sweeps stored: the figure's data equals the rows, off-label points have no rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from plotly.utils import PlotlyJSONEncoder

from sparselens.analyses.sweep.frontier import POINTS, ranked, wide
from sparselens.dashboards.app import create_app
from sparselens.dashboards.pages.frontier import sections
from sparselens.dashboards.query import Source
from sparselens.storage.writer import RunWriter

METHODS = {"window": (0.4, False, 0.0), "trained": (0.9, True, 0.0), "half_dense": (0.6, False, 0.5)}
METRICS = ("recalled_mass", "write_error", "nll_change")


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods at two densities, as a sweep writes them."""
    path = tmp_path_factory.mktemp("frontier") / "trace"
    points = {}
    for name, (value, off_label, dense) in METHODS.items():
        for target in (0.1, 0.2):
            meta = {
                "kind": "sweep", "policy": f"{name}(k={target})", "phase": "prefill", "off_label": off_label,
                "lookahead": False, "args": {"method": name, "target": target, "prompts": "prose(n=2)"},
                "extra": {"unit": "keys", "reached": True},
            }  # fmt: skip
            with RunWriter.start(path, meta=meta) as run:
                run.finish({})
            points[run.run_id] = (value + target, target, dense)
    with RunWriter.start(path, meta={"kind": "analysis", "name": "sweep"}) as run:
        with run.part([]) as part:
            for run_id, (value, target, dense) in points.items():
                found = dict.fromkeys(METRICS, value) | {"density": target, "dense_call_share": dense}
                found |= {f"{metric}{suffix}": 0.3 for metric in METRICS for suffix in ("_random", "_oracle")}
                found |= {f"{metric}_over_random": value - 0.3 for metric in METRICS}
                part.add(
                    "evals",
                    {
                        "run_id": run_id, "task": "sweep", "metric": list(found), "value": list(found.values()),
                        "n": 2, "n_clusters": 2, "ci_low": 0.0, "ci_high": 2.0,
                    },
                )  # fmt: skip
        run.finish({})
    return path


def plain(component: Any) -> str:
    return json.dumps(component, cls=PlotlyJSONEncoder)


def graphs(component: Any) -> list[Any]:
    found = [component] if type(component).__name__ == "Graph" else []
    children = getattr(component, "children", None)
    for child in children if isinstance(children, list | tuple) else [children]:
        if hasattr(child, "to_plotly_json"):
            found += graphs(child)
    return found


def test_the_figures_hold_the_stored_numbers(swept: Path) -> None:
    frame = wide(Source(swept).frame(POINTS, analysis=None))
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


def test_off_label_and_dense_points_are_listed_without_a_rank(swept: Path) -> None:
    (section,) = sections(wide(Source(swept).frame(POINTS, analysis=None)))
    text = plain(section)
    assert "off-label" in text
    assert "50% of calls dense" in text
    frame = wide(Source(swept).frame(POINTS, analysis=None))
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


def test_the_page_answers_with_a_section_or_says_what_to_run(swept: Path, trace: Path) -> None:
    assert "window(k=0.1)" in ask(swept)
    assert "sparselens sweep" in ask(trace)
