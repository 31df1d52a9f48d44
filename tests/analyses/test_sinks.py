"""Sinks are found where they were put: by layer, at the first token and later ones, and what a policy does to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sink_model import LATER as LATER_ID
from sink_model import LENGTH, STEEP, sink_session
from slow_sinks import slow_change, slow_profile

import sparselens as sl
from sparselens.analyses.sinks.profile import ranges
from sparselens.analyses.sinks.question import ANALYSIS
from sparselens.storage.reader import connect
from sparselens.storage.trace import Trace
from sparselens.storage.writer import RunWriter
from sparselens.workbench.capture import capture
from sparselens.workbench.cli import main

T = 80
LATER = 20


def row(
    part: Any, prompt: int, *, tables: tuple[str, ...] = ("row_stats", "value_norms", "token_stats")
) -> None:
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
            stats = {
                "pattern": "executed",
                "layer": layer,
                "head": head,
                "q_pos": position,
                "sink_mass": mass,
            }
            written = np.where(first & sinks, 0.5, np.where(later & (layer == 2), 2.0, 5.0))
            norms = {"layer": layer, "head": head, "pos": position, "value_write_norm": written}
            for name, columns in (("row_stats", stats), ("value_norms", norms)):
                if name in tables:
                    part.add(name, columns)
        norm = np.where(first & (layer == 1), 100.0, 1.0) + np.where(later & (layer == 2), 49.0, 0.0)
        received = np.where(later & (layer == 2), 0.6, 0.02)
        received[-3:] = 0.9  # the last keys are seen by few queries
        if "token_stats" in tables:
            part.add(
                "token_stats",
                {"layer": layer, "pos": position, "resid_norm": norm, "received_mass": received},
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
    others = (78 * 5 + 2) / 79  # token 20 writes less in layer 2
    assert [of[layer]["value_drain"] for layer in range(3)] == pytest.approx([1, 0.55, 5 / others])
    assert [of[layer]["residual_peak"] for layer in range(3)] == pytest.approx([1, 100, 79 / 128])
    assert [of[layer]["residual_peak_other"] for layer in range(3)] == pytest.approx([1, 1, 50])
    assert [of[layer]["other_sinks"] for layer in range(3)] == [0, 0, 1]
    said = "sink 1 (at least half of the heads); drain none (at most half of what the others write); residual peak 1"
    assert any(said in note and "agree in 2 of 3 layers, not in 1" in note for note in shown.notes)
    assert any("'.' (3 in 3 prompts, layers 2; norm 50 ×, write 0.4 ×" in note for note in shown.notes)
    with connect(planted) as trace:
        head = trace.sql(
            "SELECT metric, value, n, n_clusters FROM head_scores WHERE layer = 1 AND head = 0"
        ).rows
        about = trace.sql("SELECT DISTINCT run_id, definition IS NULL, params FROM head_scores").rows
        parents = trace.sql("SELECT parents FROM runs WHERE kind = 'analysis'").rows[0][0]
        layer = trace.sql(
            "SELECT n, n_clusters FROM head_scores WHERE layer = 1 AND head IS NULL AND metric = 'sink_rate'"
        ).rows
        later = dict(
            trace.sql(
                "SELECT metric, value FROM head_scores WHERE layer = 2 AND metric ^@ 'other_sinks_'"
            ).rows
        )
        whole = trace.sql("SELECT task, value, n FROM evals WHERE metric = 'sink_rate'").rows
    assert head == [("value_drain", pytest.approx(0.1), 3, 3)]
    assert layer == [(6, 3)]
    assert later == pytest.approx(
        {"other_sinks_received": 0.6, "other_sinks_residual": 50, "other_sinks_write": 0.4}
    )
    assert whole == [("sinks", pytest.approx(1 / 6), 18)]
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
    assert (
        "has no prompt of 200 tokens, the longest has 80: capture longer prompts" in capsys.readouterr().err
    )
    assert main(["analyse", "sinks", "--run", "nothing", *words]) == 2
    assert "no run 'nothing'" in capsys.readouterr().err
    assert main(["analyse", "sinks(epsilon=1.5)", *words]) == 2
    assert "epsilon is a share between 0 and 1, not 1.5" in capsys.readouterr().err
    assert main(["analyse", "sinks(window=0)", *words]) == 2
    assert "window is 1 or more rows" in capsys.readouterr().err
    assert main(["analyse", "sinks", "--json", *words]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 3


def test_a_run_without_the_tables_says_which_and_what_to_capture(tmp_path: Path) -> None:
    with RunWriter.start(tmp_path / "trace", meta={"name": "dense", "policy": "dense", "model": "m"}) as run:
        with run.part(["prompt"]) as part:
            row(part, 0, tables=("row_stats",))
        run.finish()
    message = (
        r"run dense has nothing in token_stats, value_norms: `sparselens capture m .* --base 'dense'` again"
    )
    with pytest.raises(ValueError, match=message):
        ANALYSIS.run(None, tmp_path / "trace")
    assert len(Trace.open(tmp_path / "trace").runs()) == 1  # nothing was written


def test_single_heads_and_runs_captured_apart_are_refused(
    small: Any, prompts: Any, apart: list[Any], tmp_path: Path
) -> None:
    capture(small, prompts[:2], [], tmp_path / "trace", heads=["L1H0"], progress=False)
    with pytest.raises(ValueError, match=r"recorded single heads only \(L1H0\).* without --heads"):
        ANALYSIS.run(None, tmp_path / "trace")
    first, second = apart
    assert ANALYSIS.run(None, first.trace, run=second.run_id, window=16)  # alone: its own sinks
    with pytest.raises(
        ValueError, match=r"run second has nothing in token_diffs: .*--base 'dense' --policy 'a_shape"
    ):
        ANALYSIS.run(None, first.trace, run=second.run_id, base="first", window=16)
    with pytest.raises(ValueError, match="base 'second' is the run itself"):
        ANALYSIS.run(None, first.trace, run=second.run_id, base="second", window=16)


@sl.policy
def without_first(call: Any, memory: Any) -> Any:
    """Drop the first token only."""
    return (call.key_positions[:, None, None, :] > 0) | (call.query_positions[:, None, :, None] == 0)


WINDOW, KEPT = "sliding_window(window=8)", "a_shape(sink=1,window=7)"


@pytest.fixture(scope="module")
def hand_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hand_set") / "trace"
    session = sink_session()
    ids = [{"id": f"p{n}", "token_ids": list(range(LENGTH + n)), "group": f"g{n % 2}"} for n in range(4)]
    capture(session, session.prompts(ids), [without_first, WINDOW, KEPT], path, progress=False)
    return path


def scores(trace: Path, run: str, **given: Any) -> tuple[dict[Any, float], dict[str, float], Any]:
    """Head and layer scores by `(metric, layer, head)`, the run's numbers, and what is shown."""
    done = ANALYSIS.run(None, trace, run=run, **given)
    with connect(trace) as connection:
        given = {"id": done}
        found = connection.sql(
            "SELECT metric, layer, head, value FROM head_scores WHERE analysis_id = $id", given
        )
        whole = connection.sql("SELECT metric, value FROM evals WHERE analysis_id = $id", given)
    shown = ANALYSIS.show(Trace.open(trace), done, {})
    return {each[:3]: each[3] for each in found.rows}, dict(whole.rows), shown


OLDEST = 1 - np.exp(-STEEP)
"""What the oldest of many keys gets where each key gets e^STEEP times as much as the next."""


def test_a_first_token_is_a_sink_in_one_layer_and_a_later_one_beside_it(hand_set: Path) -> None:
    found, whole, shown = scores(hand_set, "dense")
    assert [found["sink_rate", layer, None] for layer in (0, 1)] == [0, 0.5]
    assert whole["sink_rate"] == 0.25
    assert [found["other_sinks", layer, None] for layer in (0, 1)] == [0, 1]
    assert found["value_drain", 1, 0] == pytest.approx(0.1, rel=1e-5)
    text = sink_session().tokenizer.decode([LATER_ID])
    assert any(f"{text!r} (4 in 4 prompts, layers 1" in note for note in shown.notes)


def test_dropping_the_first_token_makes_the_first_kept_key_a_new_sink(hand_set: Path) -> None:
    found, whole, shown = scores(hand_set, "without_first")
    assert found["sink_kept", 1, 0] == 0
    assert found["sink_mass_base", 1, 0] == pytest.approx(OLDEST, abs=1e-5)
    assert found["sink_mass_run", 1, 0] == 0
    assert found["sink_to_oldest", 1, 0] == pytest.approx(OLDEST**2, abs=1e-5)  # from e^-2 of it
    assert [found["new_sinks", layer, None] for layer in (0, 1)] == [0, 1]
    assert found["lost_sinks", 1, None] == 0
    assert whole["new_sinks"] == 0.5
    text = sink_session().tokenizer.decode([1])
    assert shown.notes[-1].startswith(
        f"sinks that the base does not have: {text!r} (4 in 4 prompts, layers 1;"
    )
    assert "residual norm of the first token: unchanged" in shown.notes


def test_under_a_window_the_sink_moves_along_with_the_oldest_kept_key(hand_set: Path) -> None:
    found, _, _ = scores(hand_set, WINDOW)
    assert found["oldest_mass_run", 1, 0] == pytest.approx(OLDEST, abs=1e-5)
    assert found["oldest_mass_base", 1, 0] < 0.01
    assert found["oldest_mass_run", 0, 0] == pytest.approx(1 / 8, abs=1e-6)  # layer 0 has no sink to move
    kept, whole, _ = scores(hand_set, KEPT)
    assert kept["sink_kept", 1, 0] == 1
    assert kept["sink_mass_run", 1, 0] > 0.999  # the runners-up are gone
    assert ("oldest_mass_run", 1, 0) not in kept  # no row drops the first token
    assert whole["new_sinks"] == 0
    assert "nll_change_dropped" not in whole
    assert whole["nll_change_kept"] == whole["nll_change"]


def test_another_base_of_the_same_weights_leaves_out_what_edges_cannot_say(hand_set: Path) -> None:
    found, whole, shown = scores(hand_set, KEPT, base=WINDOW)
    assert found["sink_mass_base", 1, 0] == 0  # the window's
    assert found["sink_change", 1, 0] > 0.999
    assert not any(key[0].startswith(("sink_to_", "oldest_")) for key in found)
    assert "nll_change_kept" not in whole  # no head sinks under that base
    assert [each["policy"] for each in shown.rows] == [f"{WINDOW} (base)", KEPT]


def test_policies_stand_side_by_side(hand_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run in (WINDOW, KEPT):
        assert main(["analyse", "sinks", "--run", run, "--trace", str(hand_set), "--json"]) == 0
    rows = {each["policy"]: each for each in json.loads(capsys.readouterr().out.split("]\n")[-2] + "]")}
    assert {"dense (base)", WINDOW, KEPT} <= set(rows)
    assert [rows[name]["sink_kept"] for name in (WINDOW, KEPT)] == [0, 1]
    assert rows[WINDOW]["density"] == pytest.approx(rows[KEPT]["density"])
    assert rows[WINDOW]["rows"] == rows[KEPT]["rows"] == sum(LENGTH + n - 1 - 8 for n in range(4))


def test_a_policy_that_drops_nothing_says_so(small: Any, prompts: Any, tmp_path: Path) -> None:
    capture(small, prompts, ["sliding_window(window=250)"], tmp_path / "trace", progress=False)
    _, whole, shown = scores(tmp_path / "trace", "sliding_window(window=250)", window=16)
    assert whole["affected_rows"] == 0
    assert any("dropped nothing in any row" in note for note in shown.notes)


@pytest.fixture(scope="module")
def sparse(small: Any, prompts: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("sparse") / "trace"
    policies = ["sliding_window(window=9)", "a_shape(sink=2,window=12)", without_first]
    capture(small, prompts, policies, path, progress=False)
    return path


@pytest.mark.parametrize("run", ["sliding_window(window=9)", "a_shape(sink=2,window=12)", "without_first"])
def test_every_number_is_that_of_whole_maps_walked_in_loops(
    small: Any, prompts: Any, sparse: Path, run: str
) -> None:
    given = {"window": 16, "epsilon": 0.08, "received": 0.07}
    found, whole, _ = scores(sparse, run, **given)
    slow = slow_profile(small, prompts, run, **given) | slow_change(small, prompts, run, received=0.07)
    assert {key[0] for key in slow} == {key[0] for key in found} | set(whole)
    for key, expected in slow.items():
        metric, *place = key
        # float32 twice over two layers, of masses up to 1 and of losses up to 10
        near = pytest.approx(expected, abs=2e-5, rel=2e-5)
        if place:
            assert found[key] == near, key
        else:
            assert whole[metric] == near, key
    masses = [found["sink_mass_base", layer, head] for layer in (0, 1) for head in range(4)]
    assert max(masses) > 0.08  # some head sinks, else no loss is split
    assert max(found["new_sinks", layer, None] for layer in (0, 1)) > 0


def test_where_the_mass_went_adds_up_to_what_left_the_first_token(sparse: Path) -> None:
    found, _, _ = scores(sparse, "sliding_window(window=9)", window=16)
    for layer in range(2):
        for head in (0, 1, 2, 3, None):
            parts = ("oldest", "newest", "later", "others", "unstored")
            total = sum(found[f"sink_to_{part}", layer, head] for part in parts)
            assert total == pytest.approx(-found["sink_change", layer, head], abs=1e-9)


def test_random_weights_have_no_sinks(tmp_path: Path) -> None:
    import torch
    from small_session import small_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    from sparselens.workbench.models import wrap

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=3000, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.02,
    )  # fmt: skip
    session = wrap(LlamaForCausalLM(config).eval(), small_tokenizer())
    capture(
        session, "prose(length=96,n=3)", ["sliding_window(window=24)"], tmp_path / "trace", progress=False
    )
    _, whole, shown = scores(tmp_path / "trace", "dense")
    assert (whole["sink_rate"], whole["other_sinks"]) == (0, 0)
    uniform = sum(1 / rows for rows in range(1, 65)) / 64
    assert whole["sink_alpha"] == pytest.approx(uniform, rel=0.02)
    assert any("sink none" in note for note in shown.notes)
    found, whole, _ = scores(tmp_path / "trace", "sliding_window(window=24)")
    assert whole["new_sinks"] == 0
    assert found["oldest_mass_run", 1, 0] < 1.05 / 24


def test_a_first_token_whose_residual_moved_is_flagged(tmp_path: Path) -> None:
    session = sink_session()
    path = tmp_path / "trace"
    prompts = session.prompts([{"id": "p", "token_ids": list(range(LENGTH))}])
    capture(session, prompts, [KEPT], path, progress=False)
    base, run = Trace.open(path).runs()
    for file in base.folder.glob("*/token_stats.parquet"):
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        table = pq.read_table(file)
        at = table.column_names.index("resid_norm")
        norms = pc.if_else(
            pc.equal(table["layer"], 1), pc.multiply(table["resid_norm"], 1.02), table["resid_norm"]
        )
        pq.write_table(table.set_column(at, table.schema.field(at), norms.cast(pa.float32())), file)
    _, _, shown = scores(path, run.run_id)
    assert any("CHANGED by more than 1 % in layers 1:" in note for note in shown.notes)


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


def test_numbers_are_said_as_ranges() -> None:
    assert ranges([3, 4, 5, 9, 12, 13]) == "3–5, 9, 12–13"
    assert ranges([]) == ""
