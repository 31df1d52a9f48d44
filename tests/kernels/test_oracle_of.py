"""References of another policy's shape: exactly its counts, the best of them or random ones, and nothing better."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sparselens.kernels.parts.quota import best
from sparselens.kernels.policy import Memory, parse
from sparselens.kernels.selection import Bits, Everything, Mixture, Tiles

from .conftest import exact, make_call
from .policy_case import Case, cases, kept, mask_of

EVERY = pytest.mark.parametrize("case", cases(), ids=lambda case: case.text)
BLOCK = "random(density=0.4,granularity=block,block=16,seed=3)"


def reference(name: str, text: str) -> str:
    """The call of a reference of a policy's shape, in the policy's phase."""
    phase = ",phase=decode" if parse(text).phase == "decode" else ""
    return f"{name}(policy={text}{phase})"


def dense_weights(call: object) -> Tensor:
    return exact(call, torch.ones(1, 1, 1, 1, dtype=torch.bool)).weights  # type: ignore[arg-type]


@EVERY
def test_no_policy_recalls_more_than_the_oracle_of_its_shape(case: Case) -> None:
    """In float64, over the rows in which something was dropped; and each keeps as many keys in every row."""
    call = make_call(80)
    mine = mask_of(case.text, call)
    oracle = mask_of(reference("oracle_of", case.text), call)
    drawn = mask_of(reference("random_of", case.text), call)
    assert torch.equal(mine.sum(-1), oracle.sum(-1))
    assert torch.equal(mine.sum(-1), drawn.sum(-1))
    weights = dense_weights(call)
    affected = mine.sum(-1) < torch.arange(1, 81)
    of_mine, of_oracle = ((weights * mask).sum(-1)[affected].sum() for mask in (mine, oracle))
    assert of_mine <= of_oracle + 1e-9 * max(int(affected.sum()), 1)


def test_the_oracle_keeps_the_heaviest_keys_of_each_row() -> None:
    call = make_call(60)
    text = "vertical_slash(vertical=6,slash=8,sink=2,recent=3,min_vertical=1,min_slash=1,last_q=16,tile=0)"
    mine, oracle = mask_of(text, call), mask_of(f"oracle_of(policy={text})", call)
    weights = dense_weights(call)
    for head in range(6):
        for row in range(60):
            count = int(mine[0, head, row].sum())
            expected = sorted(range(row + 1), key=lambda key: -float(weights[0, head, row, key]))[:count]
            assert oracle[0, head, row].nonzero()[:, 0].tolist() == sorted(expected)


def test_tiles_are_answered_with_the_heaviest_tiles_and_the_same_diagonal() -> None:
    call = make_call(75)
    weights = dense_weights(call)[0]
    theirs = parse(BLOCK).select(call, Memory())
    ours = parse(f"oracle_of(policy={BLOCK})").select(call, Memory())
    assert isinstance(theirs, Tiles)
    assert isinstance(ours, Tiles)
    for head in range(6):
        for block in range(5):
            wanted = int(theirs.map[0, head, block, :block].sum())
            mass = [
                float(weights[head, block * 16 : (block + 1) * 16, key * 16 : (key + 1) * 16].sum())
                for key in range(block)
            ]
            heaviest = sorted(sorted(range(block), key=lambda key: -mass[key])[:wanted])
            found = ours.map[0, head, block, : block + 1].nonzero()[:, 0].tolist()
            assert found == [*heaviest, block]


def test_tiles_that_a_native_window_cuts_stay_as_the_policy_has_them() -> None:
    call = make_call(75, window=30)
    mine, oracle = mask_of(BLOCK, call), mask_of(f"oracle_of(policy={BLOCK})", call)
    assert torch.equal(mine.sum(-1), oracle.sum(-1))


def test_heads_that_are_kept_dense_stay_dense_and_others_have_tiles() -> None:
    call = make_call(75)
    found = parse(f"oracle_of(policy=per_head(default={BLOCK},full=[L0H2]))").select(call, Memory())
    assert isinstance(found, Mixture)
    assert [type(part).__name__ for _, part in found.parts] == ["Tiles", "Everything"]


def test_random_keeps_the_query_itself_and_differs_by_seed_head_and_layer() -> None:
    call = make_call(80)
    one, same, other = (mask_of(f"random_of(policy=a_shape,seed={seed})", call) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    text = "random_of(policy=sliding_window(window=9),seed={})"
    one, other = (mask_of(text.format(seed), call) for seed in (0, 1))
    assert one.diagonal(dim1=-2, dim2=-1).all()
    assert not torch.equal(one, other)
    assert not torch.equal(one[:, 0], one[:, 1])
    deeper = replace(call, layer=1)
    assert not torch.equal(one, mask_of(text.format(0), deeper))


def test_random_keys_are_spread_evenly_over_the_row() -> None:
    """300 draws of 7 among 78 others: each is expected 26.9 times, standard deviation 4.9; six of these are allowed."""
    call = make_call(79, heads=4, kv_heads=2)
    total = torch.zeros(79)
    for seed in range(75):
        total += mask_of(f"random_of(policy=sliding_window(window=8),seed={seed})", call)[0, :, -1].sum(0)
    assert total[-1] == 300
    assert (total[:-1] - 300 * 7 / 78).abs().max() < 6 * 4.9


def test_a_reference_acts_where_its_policy_does() -> None:
    call = make_call(40)
    policy = parse("oracle_of(policy=sliding_window(window=4,phase=decode))")
    assert policy.decodes_only
    assert isinstance(policy.selection_for(call, Memory()), Everything)
    assert isinstance(policy.selection_for(replace(call, phase="decode"), Memory()), Bits)
    short = parse("random_of(policy=sliding_window(window=4,dense_below=50))")
    assert bool(kept(short.selection_for(call, Memory()), call).sum() == 6 * 40 * 41 / 2)


def test_wider_widens_the_policy_within() -> None:
    policy = parse("random_of(policy=sliding_window(window=8),seed=3)")
    assert str(policy.wider(2.0)) == "random_of(policy=sliding_window(window=16),seed=3)"


def test_the_best_are_exactly_as_many_as_asked_for_also_among_ties() -> None:
    scores = torch.tensor([[1.0, 1.0, 1.0, 0.0], [2.0, -torch.inf, 1.0, 3.0], [5.0, 4.0, 3.0, 2.0]])
    kept_keys = best(scores, torch.tensor([2, 9, 0]))
    assert kept_keys.tolist() == [
        [True, True, False, False], [True, False, True, True], [False] * 4,
    ]  # fmt: skip
    double = best(scores.double(), torch.tensor([2, 9, 0]))
    assert torch.equal(kept_keys, double)
    assert torch.equal(kept_keys, best(scores.half(), torch.tensor([2, 9, 0])))
