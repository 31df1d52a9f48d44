"""The documented questions are there, parse, and run on any trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sparselens.storage.questions import Question, questions
from sparselens.storage.reader import connect
from sparselens.storage.trace import Run, Trace
from sparselens.storage.writer import RunWriter


def test_there_are_ten_with_names_titles_and_limits() -> None:
    found = questions()
    assert len(found) == len({question.name for question in found}) == 10
    assert {question.limit for question in found} == {0.1, 2.0}
    assert all(question.cost in ("touches one head", "summary", "scans all edges") for question in found)


@pytest.mark.parametrize("question", questions(), ids=lambda question: question.name)
def test_each_runs_on_an_empty_trace(
    trace_path: Path, question: Question, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparselens.storage.reader.ensure_views_file", lambda trace: None)
    Trace.create(trace_path)
    with connect(trace_path) as trace:
        assert trace.sql(question.sql).rows == []


def test_the_needle_question_sums_the_rows_that_predict_the_answer(trace_path: Path) -> None:
    with RunWriter.start(trace_path, "r") as run:
        with run.part(["p1"]) as part:
            part.add("prompts", {"name": "x", "n_tokens": 8})
            part.add("spans", {"name": ["needle", "answer"], "start": [2, 6], "stop": [4, 8]})
            edges = {"q_pos": [4, 5, 5, 6, 7], "k_pos": [2, 3, 4, 2, 2], "p": [0.9, 0.25, 0.5, 0.75, 0.9]}
            part.add("edges", {"layer": 18, "head": 6, "kept": True, **edges})
        run.finish()
    sql = {question.name: question.sql for question in questions()}["needle"]
    with connect(trace_path) as trace:
        assert trace.sql(sql).rows == [("r", "p1", (0.25 + 0.75) / 2)]


def test_head_edges_pairs_a_capture_with_its_base(trace_path: Path, writing: Callable[..., Run]) -> None:
    for run_id, parents in (("a", []), ("b", ["a"])):
        with RunWriter.start(trace_path, run_id, {"parents": parents}) as run:
            with run.part(["p1"]) as part:
                part.add("prompts", {"name": "x", "n_tokens": 4})
                edge = {"layer": 18, "head": np.array([6, 7]), "q_pos": 3, "k_pos": 0, "p": 0.5, "kept": True}
                part.add("edges", edge)
            run.finish()
    sql = {question.name: question.sql for question in questions()}["head_edges"]
    with connect(trace_path) as trace:
        assert sorted(row[0] for row in trace.sql(sql).rows) == ["a", "b"]
