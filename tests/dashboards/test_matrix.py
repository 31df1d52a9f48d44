"""Several runs against one base: the numbers of `diffs`, one scale, losses paired by prompt, others said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparselens.dashboards.compare.matrix import candidates, losses, matrix, matrix_figure, scale, table_rows
from sparselens.dashboards.compare.matrix_panel import columns
from sparselens.dashboards.query import Source
from sparselens.dashboards.selection import MOST_RUNS, Selection, Window
from sparselens.storage.writer import RunWriter

ERROR = {"mild": (0.1, 0.2), "hard": (0.4, 0.1)}  # of heads L0H0 and L0H1 on prompt 0; prompt n adds n / 10
RISE = {"mild": 1.0, "hard": 4.0}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Two prompts in two groups: a base, two runs of it, and a run that is compared with nothing."""
    path: Path = tmp_path_factory.mktemp("matrix") / "trace"
    for name in ("base", "mild", "hard", "apart"):
        with RunWriter.start(path, name, {"name": f"the {name}", "policy": "dense"}) as run:
            for number in range(2):
                with run.part([f"p{number}"]) as part:
                    write_prompt(part, name, number)
            run.finish({})
    return Source(path)


def write_prompt(part: Any, name: str, number: int) -> None:
    part.add("prompts", {"name": f"p{number}", "grp": f"g{number}", "n_tokens": 5})
    part.add("spans", {"name": ["answer"], "start": [3], "stop": [5]})
    rise = RISE.get(name, 0.0) * (1 + number)
    part.add("predictions", {"pos": np.arange(1, 5), "nll": np.array([9.0, 9.0, 1.0 + rise, 1.0 + rise])})
    heads = {"layer": [0, 0], "head": [0, 1]}
    part.add("head_stats", {"pattern": "executed", "rows": "all", **heads, "n_rows": 5, "density": 0.5})
    if name in ERROR:
        errors = np.array(ERROR[name]) + number / 10
        for rows in ("all", "span:answer"):
            part.add(
                "diffs",
                {"run_a": "base", "run_b": name, "scope": "end_to_end", "rows": rows, **heads, "n_rows": 2,
                 "write_error": errors, "kept_mass": 1 - errors},
            )  # fmt: skip


def asked(**other: Any) -> Selection:
    chosen = {"a": "base", "b": "mild", "prompt": "p0", "scope": "end_to_end", "rows": "span:answer"}
    return Selection(**{**chosen, "metric": "write_error", "runs": "mild,hard", **other})


def test_runs_stand_by_their_loss_on_one_scale(source: Source) -> None:
    found = matrix(source, asked())
    assert [line.run["run_id"] for line in found.lines] == ["hard", "mild"]
    assert found.lines[0].heads[0, 0] == (pytest.approx(0.4), None, None)
    assert found.lines[0].heads[0, 1] == (pytest.approx(0.1), None, None)
    assert scale(found) == (0.0, pytest.approx(0.4))
    figure = matrix_figure(found, (1, 2), 1)
    assert [line["values"] for line in figure["lines"]] == [[0.4, 0.1], [0.1, 0.2]]
    assert [line["levels"] for line in figure["lines"]] == [[32, 8], [8, 16]]
    assert figure["lines"][0]["lows"] == []


def test_losses_are_of_the_answer_and_shares_of_the_largest_rise(source: Source) -> None:
    one = losses(source, asked(), ["mild", "hard"])
    assert (one["hard"]["kind"], one["hard"]["a"], one["hard"]["b"]) == ("answer", 1.0, 5.0)
    assert (one["mild"]["change"], one["mild"]["share"]) == (1.0, 0.25)
    assert one["mild"]["low"] is None  # one prompt has no interval
    both = losses(source, asked(over="all"), ["mild", "hard"])
    assert (both["hard"]["change"], both["hard"]["n"], both["hard"]["n_groups"]) == (6.0, 2, 2)
    assert both["hard"]["low"] == pytest.approx(4.0)
    assert both["hard"]["high"] == pytest.approx(8.0)


def test_over_all_prompts_heads_have_intervals(source: Source) -> None:
    found = matrix(source, asked(over="all"))
    mean, low, high = found.lines[0].heads[0, 0]
    assert mean == pytest.approx(0.45)
    assert (low, high) == (pytest.approx(0.4), pytest.approx(0.5))
    assert matrix_figure(found, (1, 2), 1)["lines"][0]["lows"][0] == pytest.approx(0.4)
    assert found.said == ("Rows span:answer, end_to_end, mean over all prompts, 95 % bootstrap over groups.",)


def test_the_table_has_the_worst_and_the_mean_over_the_runs(source: Source) -> None:
    found = matrix(source, asked())
    rows = {row["head_name"]: row for row in table_rows(found)}
    assert (rows["L0H0"]["worst"], rows["L0H0"]["whose"]) == (pytest.approx(0.4), "the hard")
    assert (rows["L0H1"]["worst"], rows["L0H1"]["mean"]) == (pytest.approx(0.2), pytest.approx(0.15))
    assert (rows["L0H1"]["run0"], rows["L0H1"]["run1"]) == (pytest.approx(0.1), pytest.approx(0.2))
    assert [column["field"] for column in columns(found)][-2:] == ["run0", "run1"]


def test_of_a_share_that_is_kept_the_lowest_is_the_worst(source: Source) -> None:
    found = matrix(source, asked(metric="kept_mass"))
    rows = {row["head_name"]: row for row in table_rows(found)}
    assert rows["L0H0"]["worst"] == pytest.approx(0.6)
    assert scale(found) == (0.0, 1.0)


def test_runs_of_another_base_are_said_and_left_out(source: Source) -> None:
    assert [run["run_id"] for run in candidates(source, "base")] == ["mild", "hard"]
    found = matrix(source, asked(runs="apart,nobody,base,mild"))
    assert [line.run["run_id"] for line in found.lines] == ["mild"]
    said = " ".join(found.said)
    assert "the apart is not compared with A" in said
    assert "'nobody' is A itself or no captured run" in said
    assert "'base' is A itself" in said
    assert matrix(source, asked(runs="apart")).lines == []


def test_brushed_rows_that_a_run_lacks_are_said_in_its_lane(source: Source) -> None:
    found = matrix(source, asked(brush=Window(2, 4)))
    assert [line.problem != "" for line in found.lines] == [True, True]


def test_more_than_eight_runs_are_refused_in_a_line() -> None:
    many = ",".join(f"run{number}" for number in range(MOST_RUNS + 1))
    selection, complaints = Selection.parse(f"?runs={many}")
    assert selection.runs == ""
    assert complaints == ["The link's runs was ignored: it lists 9 runs, up to 8 are compared at once."]
    assert Selection.parse("?runs=x,x,y")[0].runs == "x,y"
