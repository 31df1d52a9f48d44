"""Tasks: what counts as right, what chance is, which positions are read, and who tests what the others found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_tokenizer import small_tokenizer

from sparselens.analyses.circuit.curve import ratio
from sparselens.analyses.circuit.plan import Circuit
from sparselens.analyses.circuit.task import TASKS, cases, halves, needed, place
from sparselens.workbench.prompt import built_in


def made(**given: Any) -> list[Any]:
    chosen = Circuit(**given)
    return cases(built_in(chosen.prompts, small_tokenizer()), chosen.about)


@pytest.mark.parametrize("name", sorted(TASKS))
@pytest.mark.parametrize("filler", [0, 30])
def test_places_of_every_task_are_before_the_row_that_reads_them(name: str, filler: int) -> None:
    for case in made(task=name, n=4, references=2, filler=filler):
        assert len(case.references) == 2
        assert len(case.places()) == len(case.task.reads)
        for row, key in case.places():
            assert 0 <= key < row < len(case.clean) - len(case.clean.answer_ids)


def test_a_place_may_be_the_token_after_a_span() -> None:
    (case, *_) = made(task="ioi", n=2)
    start = case.clean.spans["S1"][0]
    assert (place(case.clean, "S1"), place(case.clean, "S1+1")) == (start, start + 1)


def test_right_is_above_all_wrong_tokens_for_logits_and_more_probable_in_sum_for_probabilities() -> None:
    (names, *_) = made(task="copying", n=2)
    logits = torch.zeros(3000)
    logits[list(names.right)] = 1.0
    assert names.judged(logits)
    logits[names.wrong[3]] = 2.0
    assert not names.judged(logits)
    (digits, *_) = made(task="greater_than", n=2)
    logits = torch.full((3000,), -20.0)
    logits[list(digits.right)] = 0.0  # many of little
    logits[digits.wrong[0]] = 1.0  # one of more: e against their number
    assert digits.judged(logits) == (len(digits.right) > len(digits.wrong) - 1 + 2.718)


def test_chance_is_one_of_the_candidates() -> None:
    assert made(task="ioi", n=2)[0].chance == 0.5
    assert made(task="copying", n=2)[0].chance == pytest.approx(1 / 12)
    assert made(task="copying(words=5)", n=2)[0].chance == pytest.approx(1 / 5)
    assert made(task="greater_than", n=2)[0].chance == 0.5


def test_what_is_needed_is_twice_chance_where_that_can_be() -> None:
    assert needed(1 / 12) == pytest.approx(1 / 6)
    assert needed(1 / 3) == pytest.approx(2 / 3)
    assert needed(0.5) == 0.75
    assert needed(0.95) < 1


def test_no_template_both_finds_and_tests() -> None:
    searched, tested = halves(made(task="ioi", n=16))
    assert {case.cluster for case in searched}.isdisjoint(case.cluster for case in tested)
    assert len(searched) == len(tested) == 8
    with pytest.raises(ValueError, match="give a larger n"):
        halves(made(task="ioi", n=2))


def test_the_metric_is_that_of_the_tokens() -> None:
    (case, *_) = made(task="ioi", n=2)
    logits = torch.zeros(3000)
    logits[case.right[0]], logits[case.wrong[0]] = 3.0, 1.0
    assert float(case.pair.metric(logits)) == 2.0
    (digits, *_) = made(task="greater_than", n=2)
    even = torch.zeros(3000)
    expected = (len(digits.right) - len(digits.wrong)) / 3000
    assert float(digits.pair.metric(even)) == pytest.approx(expected)


def test_a_share_is_a_ratio_of_sums_and_one_prompt_without_a_gap_does_not_decide_it() -> None:
    found = ratio([1.0, 1.0, 0.5], [2.0, 2.0, 1e-9], ["a", "b", "c"])
    assert found.mean == pytest.approx(2.5 / 4)
    assert (found.n, found.n_clusters) == (3, 3)
    alone = ratio([1.0, 2.0], [2.0, 2.0], ["a", "a"])
    assert alone.mean == 0.75
    assert alone.low != alone.low


def test_circuits_are_named_by_what_they_depend_on() -> None:
    card = {"weight_hash": "w", "tokenizer_hash": "t", "dtype": "float32"}
    dense = Circuit()
    assert dense.circuit(card) == Circuit(policy="dense", base="dense").circuit(card)
    assert Circuit(policy="a_shape(sink=4,window=64)").of_base().circuit(card) == dense.circuit(card)
    policies = ("a_shape(sink=4,window=64)", "a_shape(sink=4,window=32)", "vertical_slash()")
    others = [Circuit(n=8), Circuit(filler=40), Circuit(seed=1), *(Circuit(policy=each) for each in policies)]
    names = {each.circuit(card) for each in [dense, *others]} | {dense.circuit({**card, "dtype": "bfloat16"})}
    assert len(names) == 8
