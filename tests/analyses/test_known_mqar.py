"""Associative recall grown in a toy: who binds, who recalls, and that sparsity costs exactly what it hides."""

from __future__ import annotations

import pytest
import torch
from toy_measure import accuracy, attention_at, in_layer, predicted
from toy_mqar import PAIRS, Recall, mqar_toy, recall
from toy_training import Toy

from sparselens.analyses.retrieval_watch import RetrievalWatch, hits, wu_scores
from sparselens.workbench.generation import walked


@pytest.fixture(
    scope="module", params=[2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (0, 1, 3))]
)
def toy(request: pytest.FixtureRequest) -> Toy:
    return mqar_toy(request.param)


@pytest.fixture(scope="module")
def held_out() -> Recall:
    return recall(500, torch.Generator().manual_seed(55))


def test_the_toy_has_learned_to_bind(toy: Toy, held_out: Recall) -> None:
    """A toy that only guesses among the stored values would stay at 1 ÷ pairs."""
    assert accuracy(predicted(toy.session, held_out.ids), held_out.labels) >= 0.98


def test_layer_0_binds_values_to_keys_and_layer_1_recalls(toy: Toy, held_out: Recall) -> None:
    ids = held_out.ids[:128]
    keys = torch.full_like(ids, -1)
    keys[:, 1 : 2 * PAIRS : 2] = torch.arange(0, 2 * PAIRS, 2)
    found = attention_at(toy.session, ids, binds=keys, recalls=held_out.values[:128])
    assert found["binds"][0, 0] >= 0.7
    assert found["recalls"][1, 0] >= 0.9
    assert found["binds"][0, 0] > found["binds"][1, 0]
    assert found["recalls"][0, 0] < 0.25


def test_without_binding_only_a_guess_among_the_values_is_left(toy: Toy, held_out: Recall) -> None:
    for layer in (0, 1):
        without = predicted(toy.session, held_out.ids, ablate=[(layer, 0)])
        assert accuracy(without, held_out.labels) <= 1 / PAIRS + 0.03


@pytest.mark.parametrize("window", [8, 16, 32, 48])
def test_a_window_on_the_recalling_head_costs_what_is_out_of_reach(
    toy: Toy, held_out: Recall, window: int
) -> None:
    policy = in_layer(inner=f"sliding_window(window={window})", layer=1)
    reachable = float((held_out.distances < window).float().mean())
    reached = accuracy(predicted(toy.session, held_out.ids, policy), held_out.labels)
    assert reached == pytest.approx(reachable, abs=0.03)
    asked = attention_at(toy.session, held_out.ids[:64], policy, value=held_out.values[:64])
    near = (torch.arange(held_out.ids.shape[1]) - held_out.values[:64] < window) & (held_out.values[:64] >= 0)
    assert asked["value_reachable"][1, 0] == pytest.approx(float(near.sum()) / (64 * PAIRS))


def test_the_one_best_key_of_the_recalling_head_is_enough(toy: Toy, held_out: Recall) -> None:
    policy = in_layer(inner="oracle_topk(k=1)", layer=1)
    assert accuracy(predicted(toy.session, held_out.ids, policy), held_out.labels) >= 0.98


def test_the_recalling_head_is_a_retrieval_head_and_the_other_hits_by_chance(
    toy: Toy, held_out: Recall
) -> None:
    """Wu et al. count the strongest key, however weak: a head without a preference hits one value in `PAIRS`."""
    total, mass = torch.zeros(2), torch.zeros(2)
    n = 32
    for ids, labels, values in zip(held_out.ids[:n], held_out.labels[:n], held_out.values[:n], strict=True):
        asked = int((labels >= 0).nonzero()[0, 0])
        place, answer = [int(values[asked])], [int(labels[asked])]
        watch = RetrievalWatch(torch.tensor(place))
        with toy.session.under("dense", observers=[watch]):
            produced = walked(toy.session, ids[None, : asked + 1], max_new_tokens=1)
        strongest, read, _ = watch.stacked()
        hit = hits(strongest, place, ids[: asked + 1].tolist(), produced)
        total += wu_scores(hit, answer, produced)[0][:, 0] / n
        mass += read[0, :, 0, 0] / n
    assert total[1] >= 0.9
    assert mass[1] >= 0.9
    assert total[0] <= 0.5  # 32 draws at 1 / 4: more than half has a chance of 3 in 10,000
    assert mass[0] <= 0.3


def test_one_key_everywhere_costs_more_and_four_are_enough(toy: Toy, held_out: Recall) -> None:
    ids, asked = held_out.ids[:250], held_out.labels[:250]
    recalling, everywhere, four = (
        accuracy(predicted(toy.session, ids, policy), asked)
        for policy in (in_layer(inner="oracle_topk(k=1)", layer=1), "oracle_topk(k=1)", "oracle_topk(k=4)")
    )
    assert everywhere < recalling - 0.02
    assert four >= 0.98
