"""The noise floor of a pair is on the Compare page where it was measured, and nothing changes where it was not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dash.development.base_component import Component

from sparselens.dashboards.compare.floor import FLOOR, floor_lines
from sparselens.dashboards.compare.grid import HEADS, UNDER, grid_figure, legend
from sparselens.dashboards.query import Source
from sparselens.storage.writer import RunWriter

A, B = "run-0-dense", "run-2-sink-window"
ASKED = {"a": A, "b": B, "prompt": "prompt-0", "over": "all", "scope": "end_to_end", "rows": "all"}
HIGH = 1e9


def write_floor(trace: Path, run: str, values: dict[str, Any], base: str = A, rows: str = "all") -> None:
    """What `analyse fidelity` would store: 3 layers of 4 heads."""
    layer, head = np.divmod(np.arange(12), 4)
    writer = RunWriter.start(trace, run, {"kind": "analysis", "name": "fidelity", "args": {"run": run}})
    with writer.part([]) as part:
        for metric, each in values.items():
            about = {"run_id": B, "metric": metric, "rows": rows, "layer": layer, "head": head, "n": 4}
            params = {"base_run": base, "noise": f"what {metric} is"}
            part.add("head_scores", about | {"value": each, "params": json.dumps(params)})
    writer.finish({})


@pytest.fixture
def source(trace: Path, tmp_path: Path) -> Source:
    """A copy of the small trace, in which floors can be written."""
    shutil.copytree(trace, tmp_path / "trace")
    return Source(tmp_path / "trace")


def words(component: Any) -> str:
    if isinstance(component, Component):
        return words(component.children)
    return " ".join(map(words, component)) if isinstance(component, list) else str(component or "")


def test_without_fidelity_nothing_is_said_and_nothing_marked(source: Source) -> None:
    frame = source.frame(HEADS, **ASKED)
    assert not frame["under_floor"].any()
    figure = grid_figure(frame, "write_error", (3, 4), 2)
    assert not any(figure["under"])
    assert UNDER not in "".join(figure["texts"])
    assert floor_lines(source.records(FLOOR, **ASKED)) == []
    assert words(legend(figure, "end_to_end")) == words(legend(figure, "end_to_end", []))


def test_heads_under_the_floor_are_marked_and_counted(source: Source) -> None:
    errors = source.frame(HEADS, **ASKED)["write_error"].to_numpy()
    floor = np.full(12, 2e-7)
    floor[[1, 6]] = errors[[1, 6]] * [1.5, 1.0]
    write_floor(
        source.path, "20260101T000000-a",
        {"noise_write_error": floor, "noise_write_error_bfloat16": np.full(12, 0.25)},
    )  # fmt: skip
    figure = grid_figure(source.frame(HEADS, **ASKED), "write_error", (3, 4), 2)
    assert [at for at, under in enumerate(figure["under"]) if under] == [1, 6]
    assert [at for at, text in enumerate(figure["texts"]) if UNDER in text] == [1, 6]
    np.testing.assert_allclose(figure["values"], errors)
    first, second = source.records(FLOOR, **ASKED)
    assert (first["median"], first["n_prompts"], first["under"], first["heads"]) == (2e-7, 4, 2, 12)
    assert first["largest"] == pytest.approx(floor.max())
    assert second["under"] == int((errors <= 0.25).sum())
    line, other = floor_lines([first, second])
    assert line.startswith(
        "noise floor (what noise_write_error is; 4 prompts): median write_error 2.0e-7, largest"
    )
    assert line.endswith("heads at or under theirs (ringed): 2 of 12")
    assert "ringed" not in other
    assert line in words(legend(figure, "end_to_end", [line]))
    assert not any(grid_figure(source.frame(HEADS, **ASKED), "kept_mass", (3, 4), 2)["under"])


def test_the_floor_is_of_this_pair_these_rows_and_as_it_ran(source: Source) -> None:
    write_floor(source.path, "20260101T000000-a", {"noise_write_error": np.full(12, HIGH)})
    write_floor(
        source.path, "20260101T000001-b", {"noise_write_error": np.full(12, HIGH)}, base="run-1-window"
    )
    for change in (
        {"scope": "local_mask"},
        {"a": "run-1-window", "b": A},
        {"rows": "span:answer"},
        {"b": "run-1-window"},
    ):
        asked = {**ASKED, **change}
        assert source.records(FLOOR, **asked) == []
        assert not source.frame(HEADS, **asked)["under_floor"].any()
    assert source.frame(HEADS, **ASKED)["under_floor"].all()
    write_floor(
        source.path, "20260101T000002-c", {"noise_write_error": np.full(12, HIGH)}, rows="span:answer"
    )
    assert source.frame(HEADS, **{**ASKED, "rows": "span:answer"})["under_floor"].all()


def test_of_two_analyses_the_newer_floor_counts(source: Source) -> None:
    write_floor(source.path, "20260101T000000-a", {"noise_write_error": np.full(12, HIGH)})
    write_floor(source.path, "20260101T000001-b", {"noise_write_error": np.zeros(12)})
    (found,) = source.records(FLOOR, **ASKED)
    assert (found["largest"], found["heads"]) == (0, 12)
