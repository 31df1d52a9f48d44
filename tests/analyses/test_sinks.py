"""Sinks are found where they were put: by layer, at the first token and at a later one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparselens.analyses.sinks import ANALYSIS
from sparselens.storage.reader import connect
from sparselens.storage.trace import Trace
from sparselens.storage.writer import RunWriter
from sparselens.workbench.cli import main

T = 80
LATER = 20


def row(part: Any, prompt: int) -> None:
    """A prompt in which layer 1 sinks on the first token with one head of two, layer 2 on token 20."""
    part.add(
        "prompts",
        {"name": [f"p{prompt}"], "prompt_set": "planted", "n_tokens": [T], "metadata": ["{}"]},
    )
    position = np.arange(T, dtype=np.uint32)
    text = ["." if at == LATER else "word" for at in range(T)]
    part.add("tokens", {"pos": position, "token_id": position, "text": text, "is_special": [False] * T})
    first, later = position == 0, position == LATER
    for layer in range(3):
        for head in range(2):
            sinks = layer == 1 and head == 0
            mass = np.full(T, 0.9 if sinks else 0.1)
            mass[64:] = 0.0  # after the window: no matter
            part.add(
                "row_stats",
                {"pattern": "executed", "layer": layer, "head": head, "q_pos": position, "sink_mass": mass},
            )
            written = np.where(first & sinks, 0.5, 5.0)
            part.add(
                "value_norms", {"layer": layer, "head": head, "pos": position, "value_write_norm": written}
            )
        norm = np.where(first & (layer == 1), 100.0, 1.0) + np.where(later & (layer == 2), 49.0, 0.0)
        received = np.where(later & (layer == 2), 0.6, 0.02)
        received[-3:] = 0.9  # the last keys are seen by few queries
        part.add(
            "token_stats", {"layer": layer, "pos": position, "resid_norm": norm, "received_mass": received}
        )


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sinks") / "trace"
    meta = {"name": "dense", "policy": "dense", "model": "planted", "weight_hash": "0" * 64}
    with RunWriter.start(path, meta=meta) as run:
        for prompt in range(3):
            with run.part([f"prompt{prompt}"]) as part:
                row(part, prompt)
        run.finish()
    return path


def test_the_layer_profile_is_the_planted_one(planted: Path) -> None:
    done = ANALYSIS.run(None, planted)
    shown = ANALYSIS.show(Trace.open(planted), done, {})
    of = {each["layer"]: each for each in shown.rows}
    assert [of[layer]["sink_rate"] for layer in range(3)] == [0, 0.5, 0]
    assert of[1]["sink_alpha"] == pytest.approx(0.5)
    assert [of[layer]["value_drain"] for layer in range(3)] == pytest.approx([1, 0.55, 1])
    assert [of[layer]["residual_peak"] for layer in range(3)] == pytest.approx([1, 100, 79 / 128])
    assert [of[layer]["residual_peak_other"] for layer in range(3)] == pytest.approx([1, 1, 50])
    assert [of[layer]["other_sinks"] for layer in range(3)] == [0, 0, 1]
    assert any("half of the heads sink: 1" in note for note in shown.notes)
    assert any("'.' (3 in 1 layers)" in note for note in shown.notes)
    with connect(planted) as trace:
        head = trace.sql("SELECT value, n, n_clusters FROM head_scores WHERE layer = 1 AND head = 0").rows
        about = trace.sql("SELECT DISTINCT run_id, definition IS NULL, params FROM head_scores").rows
        parents = trace.sql("SELECT parents FROM runs WHERE kind = 'analysis'").rows[0][0]
        layer = trace.sql(
            "SELECT n, n_clusters FROM head_scores WHERE layer = 1 AND head IS NULL AND metric = 'sink_rate'"
        ).rows
    assert head == [(pytest.approx(0.1), 3, 3)]
    assert layer == [(6, 3)]
    assert len(about) == 1
    assert not about[0][1]
    assert parents == [about[0][0]]
    assert json.loads(about[0][2])["epsilon"] == 0.3


def test_the_threshold_is_a_parameter_and_equal_arguments_are_answered_once(planted: Path) -> None:
    first = ANALYSIS.run(None, planted)
    assert ANALYSIS.run(None, planted, run="dense", epsilon=0.3) == first
    strict = ANALYSIS.run(None, planted, epsilon=0.95)
    assert strict != first
    assert {each["sink_rate"] for each in ANALYSIS.show(Trace.open(planted), strict, {}).rows} == {0}


def test_prompts_shorter_than_the_window_are_said_and_the_command_prints_layers(
    planted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--trace", str(planted)]
    assert main(["analyse", "sinks(window=200)", *words]) == 2
    assert "capture longer prompts" in capsys.readouterr().err
    assert main(["analyse", "sinks", "--run", "nothing", *words]) == 2
    assert "no run 'nothing'" in capsys.readouterr().err
    assert main(["analyse", "sinks", "--json", *words]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 3


def test_the_rate_of_a_capture_is_that_of_its_rows(paired: list[Any]) -> None:
    trace = paired[0].trace
    done = ANALYSIS.run(None, trace, run=paired[0].run_id, window=16, epsilon=0.1)
    with connect(trace) as connection:
        frame = connection.sql(
            f"SELECT * FROM row_stats WHERE run_id = '{paired[0].run_id}' AND pattern = 'executed'",
            max_rows=None,
        ).df()
        stored = dict(
            connection.sql(
                "SELECT layer, value FROM head_scores WHERE metric = 'sink_rate' AND analysis_id = $id",
                {"id": done},
            ).rows
        )
    for layer in range(2):
        rates = []
        for _, prompt in frame[frame["layer"] == layer].groupby("prompt_id", observed=True):
            alphas = [
                head[head["q_pos"] < 16]["sink_mass"].mean()
                for _, head in prompt.groupby("head", observed=True)
            ]
            rates.append(np.mean([alpha > 0.1 for alpha in alphas]))
        assert stored[layer] == pytest.approx(np.mean(rates))
