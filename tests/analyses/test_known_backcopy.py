"""A sink grown in a toy is found with all that belongs to it, and is absent where attention need not sum to one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_backcopy import TOKENS, Chain, backcopy_toy
from toy_measure import attention_at, loss, predicted, prompts_of
from toy_training import Toy

from sparselens.analyses.pattern_scores import is_sink, sink_alpha
from sparselens.analyses.sinks.question import ANALYSIS
from sparselens.storage.reader import connect
from sparselens.workbench.projection import OutputProjection

SEEDS = [3, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (0, 1))]
WINDOW, WITH_SINK = "sliding_window(window=8)", "a_shape(sink=1,window=8)"


@dataclass(frozen=True, eq=False)
class Text:
    """Held-out sequences: their process, which rows are triggers, which others (`<s>` is neither), and row numbers."""

    chain: Chain
    ids: Tensor
    triggers: Tensor
    others: Tensor

    @classmethod
    def drawn(cls, seed: int, n: int = 512) -> Text:
        chain = Chain.drawn(seed)
        ids = chain.sequences(n, torch.Generator().manual_seed(77))
        triggers = chain.is_trigger(ids)
        return cls(chain, ids, triggers, ~triggers & (torch.arange(TOKENS) > 0))

    @property
    def best(self) -> float:
        """The loss that the process leaves on the other rows."""
        return float(self.chain.losses(self.ids)[:, :-1][self.others[:, :-1]].mean())


@pytest.fixture(scope="module", params=SEEDS)
def toy(request: pytest.FixtureRequest) -> Toy:
    return backcopy_toy(request.param)


@pytest.fixture(scope="module")
def text(toy: Toy) -> Text:
    return Text.drawn(toy.seed)


@pytest.fixture(scope="module", params=SEEDS)
def control(request: pytest.FixtureRequest) -> tuple[Toy, Text]:
    return backcopy_toy(request.param, relu=True), Text.drawn(request.param)


def test_the_toy_has_learned_both_parts_of_its_task(toy: Toy, text: Text) -> None:
    found = predicted(toy.session, text.ids)
    assert loss(found, text.ids, text.triggers) < 0.05
    assert loss(found, text.ids, text.others) == pytest.approx(text.best, abs=0.05)


def test_the_same_head_is_dormant_on_one_kind_of_row_and_active_on_the_other(toy: Toy, text: Text) -> None:
    ids, row = text.ids[:64], torch.arange(TOKENS)
    found = attention_at(
        toy.session,
        ids,
        dormant=torch.where(text.others[:64], 0, -1),
        active=torch.where(text.triggers[:64], row - 1, -1),
        parked=torch.where(text.triggers[:64], 0, -1),
    )
    assert found["dormant"] >= 0.9
    assert found["active"] >= 0.95
    assert found["parked"] <= 0.05


def test_a_window_without_the_sink_costs_the_dormant_rows_and_a_sink_key_repairs_it(
    toy: Toy, text: Text
) -> None:
    dense, window, repaired = (
        predicted(toy.session, text.ids, name) for name in ("dense", WINDOW, WITH_SINK)
    )
    before = loss(dense, text.ids, text.others)
    assert loss(window, text.ids, text.others) >= before + 0.3
    assert loss(repaired, text.ids, text.others) == pytest.approx(before, abs=0.02)
    for found in (window, repaired):  # the token before a trigger is in every window
        assert loss(found, text.ids, text.triggers) == pytest.approx(
            loss(dense, text.ids, text.triggers), abs=0.02
        )


@pytest.fixture(scope="module")
def captured(toy: Toy, text: Text, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    path = tmp_path_factory.mktemp("backcopy") / "trace"
    prompts = prompts_of(toy.session, text.ids[:12])
    runs: list[Any] = toy.session.capture(prompts, [WINDOW, WITH_SINK], path, verify=True, progress=False)
    return runs


def sinks(run: Any) -> dict[str, float]:
    """What `analyse sinks` says of a run's one layer."""
    done = ANALYSIS.run(None, run.trace, run=run.run_id, window=TOKENS, received=0.3)
    with connect(run.trace) as trace:
        asked = "SELECT metric, value FROM {} WHERE analysis_id = $id"
        layer = trace.sql(asked.format("head_scores") + " AND head IS NULL AND layer = 0", {"id": done}).rows
        whole = trace.sql(asked.format("evals"), {"id": done}).rows
    return {**dict(whole), **dict(layer)}


def test_what_was_captured_is_what_ran(captured: list[Any]) -> None:
    assert [str(run.verdict) for run in captured] == ["verified 3/3"] * 3


def test_the_sinks_analysis_finds_sink_and_drain(captured: list[Any]) -> None:
    base = sinks(captured[0])
    assert base["sink_rate"] == 1
    assert base["sink_alpha"] > 0.6
    assert base["value_drain"] <= 0.25
    assert base["other_sinks"] < 0.5  # of 47 tokens a prompt: 0 to 0.2 in three trainings


def test_the_sinks_analysis_says_what_each_policy_did_to_the_sink(captured: list[Any], text: Text) -> None:
    window, with_sink = sinks(captured[1]), sinks(captured[2])
    assert (window["sink_rate"], with_sink["sink_rate"]) == (0, 1)
    assert (window["sink_kept"], with_sink["sink_kept"]) == (0, 1)
    assert window["sink_mass_base"] > 0.6
    assert window["sink_mass_run"] == 0
    assert window["nll_change_dropped"] >= 0.2  # over all rows from 8 on, triggers included
    assert with_sink["nll_change_kept"] == pytest.approx(0, abs=0.02)
    assert with_sink["sink_change"] == pytest.approx(0, abs=0.02)


def test_the_trace_puts_the_loss_on_the_dormant_rows_alone(captured: list[Any], text: Text) -> None:
    with connect(captured[0].trace) as trace:
        rows = trace.sql(
            "SELECT t.token_id, d.nll_change FROM token_diffs d JOIN tokens t ON t.prompt_id = d.prompt_id"
            " AND t.pos = d.pos - 1 WHERE d.run_b = $run AND d.affected AND t.pos >= 8",
            {"run": captured[1].run_id},
            max_rows=None,
        ).rows
    triggers = set(text.chain.triggers.tolist())
    change = {
        kind: torch.tensor([value for token, value in rows if (token in triggers) is kind])
        for kind in (True, False)
    }
    assert change[False].mean() >= 0.3
    assert change[True].abs().mean() <= 0.02


def test_relu_attention_learns_the_same_task_without_a_sink(control: tuple[Toy, Text]) -> None:
    toy, text = control
    attention = toy.session.model.model.layers[0].self_attn
    found = losses(toy, text)
    assert found["triggers"] < 0.05
    assert found["others"] == pytest.approx(text.best, abs=0.05)
    weights = attention.weights[:, 0]
    assert weights[..., 0][text.others].mean() <= 0.05
    row = torch.arange(TOKENS).expand_as(text.ids)
    before = weights.gather(-1, (row - 1).clamp(min=0)[..., None])[..., 0]
    assert before[text.triggers].mean() > 1  # nothing holds it to one
    alpha = sink_alpha(weights.sum(1), torch.arange(TOKENS, 0, -1))
    assert not is_sink(alpha, 0.3)[0].any()


def test_without_a_sink_a_window_costs_nothing(control: tuple[Toy, Text]) -> None:
    toy, text = control
    dense = losses(toy, text)
    for sink in (0, 1):
        cut = losses(toy, text, window=8, sink=sink)
        assert cut["others"] <= dense["others"] + 0.02
        assert cut["triggers"] <= dense["triggers"] + 0.02


def test_the_sink_writes_next_to_nothing(toy: Toy, text: Text) -> None:
    assert drain(toy, text) <= 0.25


def test_the_first_token_of_the_control_is_not_drained(control: tuple[Toy, Text]) -> None:
    assert drain(*control) > 0.4


def test_attention_that_computes_itself_is_refused(control: tuple[Toy, Text]) -> None:
    toy, text = control
    with pytest.raises(NotImplementedError, match="does not use transformers' AttentionInterface"):
        toy.session.logits(text.ids, policy=WINDOW)


def losses(toy: Toy, text: Text, *, window: int | None = None, sink: int = 0) -> dict[str, float]:
    """Losses of the control, whose attention no policy reaches, under a mask of its own."""
    attention = toy.session.model.model.layers[0].self_attn
    attention.window, attention.sink = window, sink
    try:
        with torch.no_grad():
            found = torch.log_softmax(toy.session.model(input_ids=text.ids).logits, -1)
    finally:
        attention.window, attention.sink = None, 0
    return {name: loss(found, text.ids, getattr(text, name)) for name in ("triggers", "others")}


@torch.no_grad()
def drain(toy: Toy, text: Text) -> float:
    """‖W_O v‖ of `<s>` ÷ its mean over the other tokens."""
    decoder = toy.session.model.model
    attention = decoder.layers[0].self_attn
    values = attention.v_proj(decoder.layers[0].attention_norm(decoder.embed_tokens(text.ids)))
    norms = OutputProjection.of(attention, 1).norm(values.flatten(0, 1)[None])[0].view(text.ids.shape)
    return float((norms[:, 0] / norms[:, 1:].mean(1)).mean())


def test_the_trace_stores_the_same_drain(toy: Toy, text: Text, captured: list[Any], tmp_path: Path) -> None:
    with connect(captured[0].trace) as trace:
        stored = trace.sql(
            "SELECT value FROM head_scores WHERE metric = 'value_drain' AND head = 0 AND run_id = $run",
            {"run": captured[0].run_id},
        ).rows
    part = Text(text.chain, text.ids[:12], text.triggers[:12], text.others[:12])
    assert stored[0][0] == pytest.approx(drain(toy, part), rel=1e-4)
