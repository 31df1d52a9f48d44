"""The same analyses run unchanged on other families: GPT-2 (joint projections), Gemma 3 (native windows)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sparselens.analyses.analysis import analyses
from sparselens.storage.reader import connect
from sparselens.workbench.capture import capture

POLICY = "a_shape(sink=2,window=24)"


@pytest.fixture(scope="module", params=["gpt2", "gemma3"])
def other(request: pytest.FixtureRequest) -> Any:
    from small_tokenizer import small_tokenizer
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GPT2Config, GPT2LMHeadModel

    from sparselens.workbench.models import wrap

    torch.manual_seed(0)
    if request.param == "gpt2":
        config = GPT2Config(
            vocab_size=3000, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.2,
            attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0,
        )  # fmt: skip
        return wrap(GPT2LMHeadModel(config).eval(), small_tokenizer())
    gemma = Gemma3TextConfig(
        vocab_size=3000, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=1, head_dim=16, sliding_window=40, max_position_embeddings=256,
        layer_types=["sliding_attention", "full_attention"], initializer_range=0.2, query_pre_attn_scalar=16,
    )  # fmt: skip
    return wrap(Gemma3ForCausalLM(gemma).eval(), small_tokenizer())


def test_roles_in_all_parts(other: Any, tmp_path: Path) -> None:
    analyses()["roles"].run(
        other,
        tmp_path / "t",
        policy=POLICY,
        sequences=2,
        windows=3,
        texts=1,
        half=20,
        gaps=(0, 7),
        length=80,
        needles=2,
        needle_length=200,
        importance=2,
    )
    with connect(tmp_path / "t") as trace:
        rows = trace.sql(
            "SELECT metric, count(*) FILTER (WHERE head IS NOT NULL), count(*), count(value) FROM head_scores"
            " GROUP BY 1"
        ).rows
        worth = trace.sql(
            "SELECT corr(a.value, b.value) FROM head_scores a JOIN head_scores b USING (layer, head)"
            " WHERE a.metric = 'importance' AND b.metric = 'importance_estimate'"
        ).rows[0][0]
    found = {row[0]: row[1:] for row in rows}
    for metric in ("induction", "sink_rate", "entropy_norm", "sink_mass_code", "value_drain", "importance"):
        assert found[metric] == (8, 8, 8), metric
    for metric in ("massive", "residual_peak", "massive_first"):
        assert found[metric] == (0, 2, 2), metric
    assert "retrieval" not in found  # random weights answer no needle
    assert -1 <= worth <= 1


@pytest.mark.parametrize("name", ["restore", "ablate"])
def test_tests_of_cause(other: Any, tmp_path: Path, name: str) -> None:
    analyses()[name].run(
        other,
        tmp_path / "t",
        policy=POLICY,
        prompts="needles(length=160,n=4,seed=1)",
        ranked_on="needles(length=160,n=4,seed=2)",
        orders="write_error",
        matched="write_error",
        counts=(1, 8),
        random_at=(1,),
        draws=2,
        check=2 if name == "restore" else 0,
    )
    metric = "gap_closed" if name == "restore" else "nll_rise"
    with connect(tmp_path / "t") as trace:
        rows = trace.sql(
            f"SELECT n_heads, value FROM interventions WHERE metric = '{metric}' AND fold IS NULL"
            " AND order_by = 'write_error'"
        ).rows
    found = dict(rows)
    assert set(found) == {1, 8}
    if name == "restore":
        assert found[8] == pytest.approx(1, abs=1e-3)  # all heads given back: the base


def test_what_reads_a_captured_run(other: Any, tmp_path: Path) -> None:
    prompts = other.prompts("needles(length=160,n=4,seed=1)")
    base, run = capture(other, prompts, [POLICY], tmp_path / "t", progress=False)
    for name in (base.run_id, run.run_id):
        analyses()["sinks"].run(None, tmp_path / "t", run=name)
    analyses()["fidelity"].run(other, tmp_path / "t", run=run.run_id)
    with connect(tmp_path / "t") as trace:
        rows = trace.sql("SELECT DISTINCT name FROM runs WHERE kind = 'analysis' ORDER BY 1").rows
        assert [name for (name,) in rows] == ["fidelity", "sinks"]
        assert trace.sql("SELECT count(*) FROM head_scores WHERE value IS NOT NULL").rows[0][0] > 50
