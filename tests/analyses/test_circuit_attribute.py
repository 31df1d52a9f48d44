"""Predicted effects of edges: against what patching them does, and where the prediction is known to fail."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from planted_circuit import DECOY, planted
from slow_circuit import MODELS, circuit_session
from torch import Tensor

from sparselens.analyses.circuit.attribute import attribute, exact
from sparselens.analyses.circuit.patch import LogitDifference, Pair, Run
from sparselens.analyses.circuit.writes import Writes

POLICIES = (
    "dense",
    "sliding_window(window=6)",
    "oracle_topk(k=4)",
    "vertical_slash(vertical=2,slash=3,min_vertical=0,min_slash=0,sink=1,recent=1,last_q=4,tile=0)",
)


@cache
def _session(family: str, size: float) -> Any:
    return circuit_session(family, size=size)


def _run(family: str, policy: str, size: float = 0.3) -> Run:
    session = _session(family, size)
    clean, other = session.prompts(
        [
            {"id": word, "text": f"the {word} over the brown fox and one {word} then", "answer": " river"}
            for word in ("jumps", "leaps")
        ]
    )
    return Run(session, Pair(clean, (other,), LogitDifference((5, 6), (9,))), policy, "reference")


def _both(run: Run, steps: int, every: int = 1) -> tuple[Tensor, Tensor]:
    """Predicted and exact effects of all edges, or of one in `every`."""
    edges = [(i, j) for i, j in run.graph.allowed.nonzero().tolist()][::every]
    scores = attribute(run, steps)
    return torch.stack([scores[edge] for edge in edges]).double(), torch.tensor(exact(run, edges)).double()


def _towards_clean(run: Run, share: float) -> Run:
    """The run with ablated values that lie at a share of the way from the clean ones to the references'."""
    near = Run.__new__(Run)
    near.__dict__ = dict(run.__dict__)
    mixed = (
        getattr(run.clean, name).lerp(getattr(run.ablated, name), share)
        for name in ("embedding", "z", "mlps", "stream")
    )
    near.ablated = Writes(*mixed)
    return near


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("family", MODELS)
def test_a_small_ablation_does_what_is_predicted_and_the_error_is_of_second_order(
    family: str, policy: str
) -> None:
    run = _run(family, policy)
    errors = []
    for share in (1e-4, 1e-5):
        predicted, done = _both(_towards_clean(run, share), 1, every=3)
        errors.append(float((predicted - done).abs().max() / done.abs().max()))
    assert errors[0] < 1e-2, "to first order"
    assert errors[1] < 0.2 * errors[0], "a tenth of the step is a tenth of the relative error"


@pytest.mark.parametrize("family", MODELS)
def test_scores_of_the_input_sum_to_what_replacing_it_does(family: str) -> None:
    run = _run(family, "dense", 0.1)
    change = run.empty() - run.full()
    errors = [abs(float(attribute(run, steps)[0].sum()) - change) / abs(change) for steps in (10, 100)]
    assert errors[1] < 0.02
    assert errors[1] < 0.2 * errors[0], "the sum over points converges with their number"


@pytest.mark.parametrize("family", MODELS)
def test_five_steps_follow_exact_effects_on_a_mild_random_model(family: str) -> None:
    """Pearson of 1 step and 5, measured: Llama 0.49, 0.997, GPT-2 0.970, 0.999; Spearman of 5: 0.98, 0.99."""
    predicted, done = _both(_run(family, "dense", 0.05), 5)
    assert float(torch.corrcoef(torch.stack([predicted, done]))[0, 1]) > 0.99


def test_scores_are_zero_where_there_is_no_edge() -> None:
    run = _run("llama", "dense")
    scores = attribute(run, 2)
    assert scores.shape == run.graph.allowed.shape
    assert not scores[~run.graph.allowed].any()
    assert all(weights.grad is None for weights in run.session.model.parameters())


def test_five_steps_find_the_planted_circuit_and_one_step_takes_the_decoy_for_part_of_it() -> None:
    session, pairs, edges = planted()
    for pair in pairs:
        run = Run(session, pair, "dense", "blocked")
        assert torch.equal(run.graph.best(attribute(run, 5), int(edges.sum())), edges)
        one = attribute(run, 1).abs()
        decoy = one[run.graph.edge("input", "L0G1.v")]
        assert int((one[edges] > decoy).sum()) < int(edges.sum())


def test_keeping_only_what_five_steps_found_keeps_the_metric() -> None:
    session, pairs, edges = planted(1)
    run = Run(session, pairs[0], "dense", "blocked")
    found = run.graph.best(attribute(run, 5), int(edges.sum()))
    assert run.circuit(found) > 0.9 * run.full()


def test_a_loud_write_that_nobody_reads_fools_the_gradient_of_the_norm_but_not_the_patch() -> None:
    session, pairs, edges = planted(1, decoy=3.0)
    run = Run(session, pairs[0], "dense", "blocked")
    place = run.graph.edge("input", f"L0G{DECOY[1] // 2}.v")
    scores = attribute(run, 5)
    span = run.full() - run.empty()
    assert abs(scores[place]) > scores[edges].abs().min()
    assert abs(exact(run, [place])[0]) < 0.1 * span


def test_attention_that_has_saturated_hides_its_keys_from_the_gradient_but_not_from_the_patch() -> None:
    session, pairs, _ = planted(1, match=12.0)
    run = Run(session, pairs[0], "dense", "blocked")
    place = run.graph.edge("L0H0", "L1G0.k")
    span = run.full() - run.empty()
    assert abs(attribute(run, 1)[place]) < 0.01 * span
    assert exact(run, [place])[0] < -0.5 * span


def test_bad_input_is_refused_in_one_line() -> None:
    run = _run("llama", "dense")
    with pytest.raises(ValueError, match="attribution takes 1 step or more, not 0"):
        attribute(run, 0)
    with pytest.raises(ValueError, match="there is no edge from sender 10 to receiver 0"):
        exact(run, [(10, 0)])
