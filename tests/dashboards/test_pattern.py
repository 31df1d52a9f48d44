"""Maps and reads: exact cells equal the softmax that ran, pooled ones their means, and neither hides mass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparselens.dashboards.head.heatmap import how, maps
from sparselens.dashboards.head.pattern import cells, exact_rows
from sparselens.dashboards.head.reads import reads
from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.selection import Selection, Window

A, B = "run-0-dense", "run-2-sink-window"
HEAD = Selection(a=A, b=B, prompt="prompt-0", layer=1, head=2)


def choose(**changes: Any) -> Selection:
    return Selection(**{"a": A, "b": B, "prompt": "prompt-0", "layer": 1, "head": 2, **changes})


@pytest.fixture(scope="module")
def source(trace: Path) -> Source:
    return Source(trace)


@pytest.mark.parametrize("run", [A, "run-1-window", B])
def test_exact_rows_are_the_softmax_that_ran(source: Source, patterns: dict[str, Any], run: str) -> None:
    rows = exact_rows(source, run, HEAD, Window(10, 60))
    np.testing.assert_allclose(rows, patterns[run][1, 2, 10:60], atol=1e-6)


def test_a_window_shows_its_cells_and_nothing_after_the_query(
    source: Source, patterns: dict[str, Any]
) -> None:
    drawn = cells(source, B, choose(qs=Window(20, 40), ks=Window(5, 30)), 60)
    assert drawn is not None
    assert drawn.exact
    expected = patterns[B][1, 2, 20:40, 5:30]
    seen = np.arange(5, 30)[None, :] <= np.arange(20, 40)[:, None]
    np.testing.assert_allclose(drawn.values[seen], expected[seen], atol=1e-6)
    assert np.isnan(drawn.values[~seen]).all()


def test_without_q_and_k_the_map_is_pooled_and_says_so(pooled_trace: Path, patterns: dict[str, Any]) -> None:
    drawn = cells(Source(pooled_trace), B, HEAD, 60)
    assert drawn is not None
    assert (drawn.exact, drawn.pool) == (False, 4)
    pooled = patterns[B][1, 2].reshape(15, 4, 15, 4).sum((1, 3)) / 4
    seen = ~np.isnan(drawn.values)
    np.testing.assert_allclose(drawn.values[seen], pooled[seen], atol=1e-3)
    assert "--keep qk" in how(drawn)
    assert "Pooled, 4 × 4" in how(drawn)


def test_scores_that_disagree_with_the_stored_lse_are_not_called_exact(odd_trace: Path) -> None:
    source = Source(odd_trace)
    with pytest.raises(SourceError, match="log-sum-exp"):
        exact_rows(source, A, HEAD, Window(10, 60))
    drawn = cells(source, A, HEAD, 60)
    assert drawn is not None
    assert not drawn.exact
    assert "log-sum-exp" in drawn.note


def test_a_and_b_share_one_range_and_the_difference_is_centred(
    source: Source, patterns: dict[str, Any]
) -> None:
    drawn = maps(source, HEAD)
    assert drawn["a"].scale == drawn["b"].scale
    assert drawn["a"].scale.high == pytest.approx(max(patterns[A][1, 2].max(), patterns[B][1, 2].max()))
    change = patterns[B][1, 2] - patterns[A][1, 2]
    assert drawn["diff"].scale.diverging
    assert drawn["diff"].scale.high == pytest.approx(np.abs(change).max(), abs=1e-6)


def test_hiding_sinks_blanks_key_0_and_takes_it_out_of_the_range(
    source: Source, patterns: dict[str, Any]
) -> None:
    drawn = maps(source, choose(hide="1"))
    assert np.isnan(drawn["b"].values[:, 0]).all()
    assert not np.isnan(drawn["b"].values[5, 1])
    most = max(patterns[run][1, 2][:, 1:].max() for run in (A, B))
    assert drawn["a"].scale.high == pytest.approx(most)


def test_nothing_stored_is_said(source: Source) -> None:
    with pytest.raises(SourceError, match="L9H9"):
        maps(source, choose(layer=9, head=9))


def test_reads_are_whole_rows_when_q_and_k_were_kept(source: Source, patterns: dict[str, Any]) -> None:
    found = reads(source, choose(q=45))
    assert found["exact"]
    np.testing.assert_allclose(found["a"], patterns[A][1, 2, 45][found["keys"]], atol=1e-6)
    np.testing.assert_allclose(found["b"], patterns[B][1, 2, 45][found["keys"]], atol=1e-6)
    assert found["kept_b"] == [k < 4 or 45 - k < 16 for k in found["keys"]]
    assert sum(found["a"]) == pytest.approx(1, abs=5e-3)


def test_reads_from_edges_have_both_runs_and_state_what_is_left_out(
    pooled_trace: Path, patterns: dict[str, Any]
) -> None:
    found = reads(Source(pooled_trace), choose(q=45))
    assert not found["exact"]
    stored = {k: (a, b) for k, a, b in zip(found["keys"], found["a"], found["b"], strict=True)}
    for k, (a, b) in stored.items():
        assert a is None or a == pytest.approx(patterns[A][1, 2, 45, k], abs=1e-6)
        assert b is None or b == pytest.approx(patterns[B][1, 2, 45, k], abs=1e-6)
    top = set(np.argsort(-patterns[A][1, 2, 45])[:8].tolist())
    assert top <= set(stored)
    assert "left out" in found["sentence"]


def test_swapped_runs_read_the_same_with_sides_exchanged(pooled_trace: Path) -> None:
    source = Source(pooled_trace)
    one, other = reads(source, choose(q=45)), reads(source, choose(q=45, a=B, b=A))
    assert (one["keys"], one["a"], one["b"]) == (other["keys"], other["b"], other["a"])


def test_who_reads_a_key_are_the_queries_that_stored_it(pooled_trace: Path, patterns: dict[str, Any]) -> None:
    found = reads(Source(pooled_trace), choose(q=3, way="readers"))
    assert found["way"] == "readers"
    for q, b in zip(found["keys"], found["b"], strict=True):
        assert b is None or b == pytest.approx(patterns[B][1, 2, q, 3], abs=1e-6)


def test_exact_cells_of_a_real_capture_with_scale_softcap_and_native_windows(tmp_path: Path) -> None:
    """A Gemma 3 with its own score scale and windowed layers: exact cells equal the executed attention."""
    import torch
    from small_tokenizer import small_tokenizer
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    from sparselens.workbench.capture import capture
    from sparselens.workbench.models import wrap

    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=3000, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, sliding_window=9, query_pre_attn_scalar=2, max_position_embeddings=256,
        layer_types=["sliding_attention", "full_attention"], initializer_range=0.3,
    )  # fmt: skip
    session = wrap(Gemma3ForCausalLM(config).eval(), small_tokenizer())
    prompts = session.prompts(
        ["seven wizards mix jade and quartz by the river and then they go home again " * 2]
    )
    run, sparse = capture(
        session, prompts, ["a_shape(sink=2,window=5)"], tmp_path / "t", keep=["qk"], progress=False
    )
    source = Source(tmp_path / "t")
    tokens = len(prompts[0])
    for each in (run, sparse):
        for layer in (0, 1):
            at = Selection(prompt=prompts[0].id, layer=layer, head=3)
            cells = exact_rows(source, each.run_id, at, Window(0, tokens))
            stored = source.frame(
                "SELECT q_pos, k_pos, p FROM edges WHERE run_id = $run AND layer = $layer AND head = 3 AND p > 0",
                run=each.run_id, layer=layer,
            )  # fmt: skip
            assert len(stored) > tokens
            np.testing.assert_allclose(cells[stored["q_pos"], stored["k_pos"]], stored["p"], atol=5e-3)
            np.testing.assert_allclose(cells.sum(axis=1), 1.0)
