"""Patched passes: against a walk that adds up every receiver's stream by itself, and against what must hold."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from planted_circuit import DECOY, planted
from slow_circuit import MODELS, SlowCircuit, circuit_session
from torch import Tensor

from sparselens.analyses.circuit.patch import LogitDifference, Pair, ProbabilityDifference, Run
from sparselens.analyses.circuit.port import ports_of
from sparselens.workbench.models import wrap

POLICIES = (
    "dense",
    "sliding_window(window=6)",
    "oracle_topk(k=4)",
    "vertical_slash(vertical=2,slash=3,min_vertical=0,min_slash=0,sink=1,recent=1,last_q=4,tile=0)",
)
METRIC = LogitDifference((5, 6), (9,))
FLOAT64 = 1e-9
"""Sums of some thousand numbers of size up to 20 in float64, rounded in another order."""
FLOAT32 = 1e-4
"""The same in float32, with the seventh digit rounded in some 20 matrix products on the way."""


@cache
def _session(family: str) -> Any:
    return circuit_session(family)


def _pair(session: Any, references: int = 2) -> Pair:
    words = ("jumps", "leaps", "runs")[: references + 1]
    clean, *others = session.prompts(
        [
            {"id": word, "text": f"the {word} over the brown fox and one {word} then", "answer": " river"}
            for word in words
        ]
    )
    size = min(len(each) for each in (clean, *others))
    assert all(len(each) == size for each in (clean, *others))
    return Pair(clean, tuple(others), METRIC)


def _run(family: str, policy: str, references: int = 2) -> Run:
    session = _session(family)
    return Run(session, _pair(session, references), policy, "reference")


def _none(run: Run) -> Tensor:
    return torch.zeros_like(run.graph.allowed)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("family", MODELS)
def test_any_circuit_equals_the_slow_walk(family: str, policy: str) -> None:
    run, slow = _run(family, policy), SlowCircuit(_session(family), policy)
    ablated = slow.ablated([list(each.token_ids) for each in run.pair.references])
    ids = list(run.pair.clean.token_ids)
    for seed, share in ((0, 0.05), (1, 0.5), (2, 0.95)):
        edges = torch.rand(run.graph.allowed.shape, generator=torch.Generator().manual_seed(seed)) < share
        _, logits = slow.walk(ids, edges, ablated)
        expected = float(METRIC(logits[run.row]))
        assert abs(run.circuit(edges) - expected) < FLOAT64, (seed, share)
        assert abs(expected - run.full()) > 1e-3, "the circuit must matter for this to say anything"


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("family", MODELS)
def test_all_edges_are_the_model_and_none_the_references(family: str, policy: str) -> None:
    run = _run(family, policy)
    assert abs(run.circuit(run.graph.allowed) - run.full()) < FLOAT64
    assert abs(run.circuit(_none(run)) - run.empty()) < FLOAT64
    session, row = _session(family), run.row
    logits = session.logits(torch.tensor([run.pair.clean.token_ids]), policy=policy, kernel="reference")
    assert abs(run.full() - float(METRIC(logits[0, row]))) < FLOAT64
    assert abs(run.full() - run.empty()) > 1e-3


@pytest.mark.parametrize("family", MODELS)
def test_one_reference_without_edges_is_that_prompt(family: str) -> None:
    run = _run(family, "dense", references=1)
    reference = Run(
        _session(family), Pair(run.pair.references[0], (run.pair.clean,), METRIC), "dense", "reference"
    )
    assert abs(run.empty() - reference.full()) < FLOAT64
    assert abs(run.circuit(_none(run)) - reference.full()) < FLOAT64


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("family", MODELS)
def test_a_node_without_edges_is_a_node_ablated(family: str, policy: str) -> None:
    run = _run(family, policy)
    kept = run.graph.allowed.clone()
    for name in ("L0H1", "L1H2"):
        kept[run.graph.senders.index(name)] = False
    assert abs(run.without_heads([(0, 1), (1, 2)]) - run.circuit(kept)) < FLOAT64
    assert abs(run.without_heads([(0, 1), (1, 2)]) - run.full()) > 1e-4
    assert run.without_heads([]) == run.full()


def test_float32_holds_to_its_rounding() -> None:
    session = circuit_session("llama", double=False)
    run = Run(session, _pair(session), "dense", "blocked")
    assert abs(run.circuit(_none(run)) - run.empty()) < FLOAT32
    assert abs(run.circuit(run.graph.allowed) - run.full()) < FLOAT32


def test_layers_that_nothing_reaches_are_not_run_and_the_rest_is_the_same() -> None:
    run = _run("llama", "dense")
    kept = run.graph.allowed.clone()
    kept[run.graph.edge("L0H1", "L1G0.k")] = kept[run.graph.edge("L1H0", "logits")] = False
    shortened = run.circuit(kept)
    run._passage.stateless = False  # a policy that carries state from layer to layer runs all of them
    assert run.circuit(kept) == pytest.approx(shortened, abs=FLOAT64)


def test_a_policy_that_carries_state_between_layers_runs_whole() -> None:
    run = _run("llama", "sparse_d(ratio=0.3,block=4)")
    assert not run._passage.stateless
    kept = run.graph.allowed.clone()
    kept[run.graph.edge("L0H1", "L1G0.k")] = False
    slow = SlowCircuit(_session("llama"), "sparse_d(ratio=0.3,block=4)")
    ablated = slow.ablated([list(each.token_ids) for each in run.pair.references])
    _, logits = slow.walk(list(run.pair.clean.token_ids), kept, ablated)
    assert abs(run.circuit(kept) - float(METRIC(logits[run.row]))) < FLOAT64


def test_nothing_is_left_on_the_model() -> None:
    run = _run("gpt2", "dense")
    run.circuit(_none(run))
    with pytest.raises(RuntimeError, match="stop here"):
        _stopped(run)
    for module in run.session.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert "forward" not in module.__dict__


def _stopped(run: Run) -> None:
    def metric(_: Tensor) -> Tensor:
        raise RuntimeError("stop here")

    broken = Run.__new__(Run)
    broken.__dict__ = {**run.__dict__, "pair": Pair(run.pair.clean, run.pair.references, metric)}
    broken.circuit(_none(run))


def test_the_probability_difference_is_that_of_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, 3.0]).log1p()
    assert float(ProbabilityDifference((3, 2), (1,))(logits)) == pytest.approx((4 + 3 - 2) / 10)


def test_planted_faithfulness_is_one_for_all_edges_and_zero_for_none() -> None:
    session, pairs, _ = planted()
    for pair in pairs:
        run = Run(session, pair, "dense", "blocked")
        span = run.full() - run.empty()
        assert span > 10
        assert abs((run.circuit(run.graph.allowed) - run.empty()) / span - 1) < FLOAT32
        assert abs((run.circuit(_none(run)) - run.empty()) / span) < FLOAT32


def test_the_planted_edges_are_needed_and_enough_and_the_decoy_is_neither() -> None:
    session, pairs, edges = planted()
    for pair in pairs:
        run = Run(session, pair, "dense", "blocked")
        span = run.full() - run.empty()
        assert abs(run.circuit(edges) - run.full()) / span < 0.1
        for place in edges.nonzero().tolist():
            without = run.graph.allowed.clone()
            without[tuple(place)] = False
            assert run.full() - run.circuit(without) > 0.5 * span, run.graph.senders[place[0]]
        assert abs(run.without_heads([DECOY]) - run.full()) / span < 0.05


def test_a_window_that_hides_the_word_breaks_the_planted_circuit() -> None:
    session, pairs, edges = planted(1)
    run = Run(session, pairs[0], "sliding_window(window=4)", "blocked")
    dense = Run(session, pairs[0], "dense", "blocked")
    assert dense.full() - run.full() > 10
    assert abs(run.circuit(edges) - run.full()) < 2


def _refused(model: Any) -> str:
    from small_tokenizer import small_tokenizer

    with pytest.raises(NotImplementedError) as raised:
        ports_of(wrap(model.eval(), small_tokenizer()))
    return str(raised.value)


def test_models_whose_nodes_do_not_add_up_are_refused_in_one_line() -> None:
    from transformers import (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        GPTNeoXConfig,
        GPTNeoXForCausalLM,
        GraniteConfig,
        GraniteForCausalLM,
    )

    size = {
        "vocab_size": 99,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 8,
    }
    gemma = _refused(Gemma3ForCausalLM(Gemma3TextConfig(**size, num_key_value_heads=1, head_dim=8)))
    assert "Gemma3ForCausalLM has norms after attention or MLP" in gemma
    assert "\n" not in gemma
    assert "runs attention beside the MLP" in _refused(GPTNeoXForCausalLM(GPTNeoXConfig(**size)))
    scaled = GraniteConfig(**size, num_key_value_heads=2, residual_multiplier=0.5)
    assert "does not add attention and then the MLP to the stream in layer 0" in _refused(
        GraniteForCausalLM(scaled)
    )


def test_a_bridge_around_the_model_changes_nothing_or_is_refused() -> None:
    bridged, plain = circuit_session("llama"), _run("llama", "sliding_window(window=6)")
    bridged.bridge  # noqa: B018
    run = Run(bridged, plain.pair, "sliding_window(window=6)", "reference")
    edges = torch.rand(run.graph.allowed.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    assert run.circuit(edges) == pytest.approx(plain.circuit(edges), abs=FLOAT64)
    joint = circuit_session("gpt2")
    joint.bridge  # noqa: B018
    with pytest.raises(NotImplementedError, match="once TransformerLens' bridge is built around it"):
        ports_of(joint)


def test_bad_input_is_refused_in_one_line() -> None:
    run = _run("llama", "dense")
    clean, reference = run.pair.clean, run.pair.references[0]
    with pytest.raises(ValueError, match="has no reference prompts"):
        Pair(clean, (), METRIC)
    longer = run.session.prompts([{"text": "the jumps over the brown fox", "answer": " river"}])[0]
    with pytest.raises(ValueError, match="references are as long as the clean prompt"):
        Pair(clean, (reference, longer), METRIC)
    with pytest.raises(ValueError, match="there is no L2H0: 2 layers of 4 heads"):
        run.without_heads([(2, 0)])
    with pytest.raises(ValueError, match=r"edges are bool \[11, 19\]"):
        run.circuit(torch.ones(2, 2, dtype=torch.bool))
