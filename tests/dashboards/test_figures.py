"""Figures say what the frame says; nothing is left out unsaid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sparselens.dashboards.compare.grid import HEADS, HOLDS_ZERO, grid_figure, legend
from sparselens.dashboards.compare.key import KEY_ROWS, KEYS, QUERIES, keys_figure
from sparselens.dashboards.compare.loss import HEADLINE, TEXT, text_figure
from sparselens.dashboards.head.number import SIDES, TABLE, statistics_figure
from sparselens.dashboards.head.panel import reading_figure
from sparselens.dashboards.pages.runs import RUNS, table_figure
from sparselens.dashboards.pages.sql import SAMPLES, samples
from sparselens.dashboards.query import Source
from sparselens.dashboards.selection import Selection
from sparselens.dashboards.sql.result import result_figure
from sparselens.dashboards.verdict import number, verdict, verified

PAIR = {"a": "run-0-dense", "b": "run-2-sink-window", "prompt": "prompt-0"}


@pytest.fixture(scope="module")
def source(trace: Path) -> Source:
    return Source(trace)


def plain(component: Any) -> str:
    """A component as JSON text."""
    return json.dumps(component, default=lambda part: part.to_plotly_json(), ensure_ascii=False)


def test_the_grid_holds_the_frames_numbers_row_by_row(source: Source) -> None:
    frame = source.frame(HEADS, over="prompt", scope="local_mask", rows="all", **PAIR)
    figure = grid_figure(frame, "write_error", (3, 4), 2)
    np.testing.assert_allclose(figure["values"], frame["write_error"])
    assert figure["levels"][int(np.argmax(figure["values"]))] == 32
    assert (figure["low"], figure["high"]) == (0.0, max(figure["values"]))


def test_the_grid_leaves_heads_without_a_row_empty() -> None:
    frame = pd.DataFrame({"layer": [1], "head": [0], "js": [0.5]})
    assert grid_figure(frame, "js", (2, 2))["values"] == [None, None, 0.5, None]


def test_a_signed_metric_is_centred_at_zero(source: Source) -> None:
    frame = source.frame(HEADS, over="all", scope="local_mask", rows="all", **PAIR)
    figure = grid_figure(frame, "entropy_change", (3, 4))
    assert (figure["scale"], figure["low"]) == ("div", -figure["high"])


def test_roles_are_outlined_and_heads_that_cannot_be_told_from_zero_hatched(source: Source) -> None:
    frame = source.frame(HEADS, over="prompt", scope="local_mask", rows="all", **PAIR)
    figure = grid_figure(frame, "write_error", (3, 4), 2, {(0, 1): "induction head"}, {(2, 3)})
    assert [at for at, mark in enumerate(figure["roles"]) if mark] == [1]
    assert [at for at, mark in enumerate(figure["unsure"]) if mark] == [11]
    assert figure["texts"][1].endswith(" · induction head")
    assert figure["texts"][11].endswith(HOLDS_ZERO)
    said = plain(legend(figure))
    assert "outlined: 1 heads with a role" in said
    assert "hatched: 1 heads" in said
    bare = plain(legend(grid_figure(frame, "write_error", (3, 4), 2)))
    assert "outlined" not in bare
    assert "hatched" not in bare


def test_an_unknown_metric_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match="write_error, kept_mass"):
        grid_figure(pd.DataFrame(), "beauty", (1, 1))


def test_the_text_holds_every_tokens_loss(source: Source) -> None:
    frame = source.frame(TEXT, **PAIR)
    figure = text_figure(frame, 5.0, 3.0, [])
    assert figure["texts"] == frame["text"].to_list()
    assert figure["values"]["a"][0] is None
    np.testing.assert_allclose(figure["values"]["diff"][1:], frame["diff"][1:])
    assert figure["levels"]["diff"][-1] == 32


def test_stripped_text_is_shown_as_boxes() -> None:
    frame = pd.DataFrame({"text": [None], "is_special": [False], "a": [1.0], "b": [None], "diff": [None]})
    assert text_figure(frame, 1, 1, [])["texts"] == ["▯"]
    assert reading_figure(frame, [], 0)["texts"] == ["▯"]


def test_the_answers_rows_are_those_that_predict_it(source: Source) -> None:
    rows = source.records(KEY_ROWS, rows="span:answer", q=None, most=9, layer=0, head=1, **PAIR)
    assert [row["q_pos"] for row in rows] == [56, 57, 58]
    needle = source.records(KEY_ROWS, rows="span:needle", q=None, most=9, layer=0, head=1, **PAIR)
    assert [row["q_pos"] for row in needle] == list(range(6, 13))
    assert [
        row["q_pos"] for row in source.records(KEY_ROWS, rows="all", q=40, most=9, layer=0, head=1, **PAIR)
    ] == [40]


def test_dropped_keys_are_struck_through_and_the_left_out_mass_is_said(source: Source) -> None:
    at = {name: PAIR[name] for name in ("b", "prompt")} | {"layer": 0, "head": 1}
    rows = source.records(KEY_ROWS, rows="all", q=50, most=9, **at)
    keys = source.records(KEYS, queries=[50], most=40, **at)
    queries = {row["pos"]: row for row in source.records(QUERIES, prompt="prompt-0", queries=[50])}
    said = plain(keys_figure(rows, keys, queries))
    dropped = [key for key in keys if not key["kept"]]
    assert dropped
    assert said.count('"Del"') == len(dropped)
    assert said.count('"Li"') == len(keys)
    assert number(rows[0]["unstored_mass"]) in said
    assert all(key["p"] == 0 for key in dropped)


def test_the_headline_compares_the_answers_loss(source: Source) -> None:
    loss = source.first(HEADLINE, over="all", **PAIR)
    np.testing.assert_allclose([loss["answer_a"], loss["answer_b"]], [0.1, 3.4], rtol=1e-5)
    assert loss["n_prompts"] == 2
    said = verdict(
        loss, {"density": 0.55, "verify_kernel": True, "verify_logits": True, "verify_calls": True}
    )
    assert said.startswith("Answer NLL 0.10 → 3.40; whole-text NLL")
    assert "55.0 % of allowed pairs kept; run verified 3/3." in said


def test_verification_names_what_failed_or_was_not_checked() -> None:
    assert verified({}) == "not verified"
    assert (
        verified({"verify_kernel": True, "verify_logits": False})
        == "verified 1/3; failed: logits; not checked: calls"
    )


def test_runs_show_status_checks_and_which_is_a_or_b(source: Source) -> None:
    rows = {row["name"]: row for row in table_figure(source.frame(RUNS), "run-0-dense", "run-1-window")}
    assert rows["window"]["verified"] == "verified 2/3; failed: logits"
    assert [rows[name]["role"] for name in ("dense", "window", "sink+window")] == ["A", "B", ""]
    assert rows["dense"]["density"] == pytest.approx(1.0)


def test_head_statistics_are_those_of_both_runs(source: Source) -> None:
    asked = {**PAIR, "layer": 1, "head": 2, "over_rows": "all"}
    rows = {row["statistic"]: row for row in source.records(TABLE, **asked)}
    direct = source.records(
        "SELECT run_id, entropy FROM head_stats WHERE prompt_id = 'prompt-0' AND rows = 'all' "
        "AND layer = 1 AND head = 2 ORDER BY run_id"
    )
    assert rows["entropy"]["a"] == pytest.approx(direct[0]["entropy"])
    assert rows["entropy"]["change"] == pytest.approx(direct[2]["entropy"] - direct[0]["entropy"])
    assert "mean over rows" in plain(statistics_figure(list(rows.values())))
    assert "{place}" in SIDES


def test_a_result_with_layer_and_head_opens_heads() -> None:
    columns, rows = result_figure(pd.DataFrame({"layer": [1], "head": [2], "x": [0.5]}))
    assert columns[0]["cellRenderer"] == "HeadLink"
    assert (rows[0]["layer"], rows[0]["head"]) == (1, 2)
    columns, _ = result_figure(pd.DataFrame({"x": [0.5]}))
    assert columns[0]["headerName"] == "x"


@pytest.mark.parametrize("title", list(SAMPLES))
def test_every_sample_query_runs(source: Source, title: str) -> None:
    selection = Selection(scope="local_mask", rows="all", layer=0, head=0, **PAIR)
    assert len(source.run(samples(selection)[title], max_rows=50)) > 0
