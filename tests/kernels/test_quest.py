"""Quest's page bounds, retold in loops; the partial page, the window, the forced page, the two ways of sharing."""

from __future__ import annotations

import pytest
import torch

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.parts.block import Blocks
from sparselens.kernels.policies.quest import page_bounds
from sparselens.kernels.policy import Memory, parse
from sparselens.kernels.selection import Everything

from .conftest import make_call


def bound(call: AttentionCall, head: int, row: int, keys: list[int]) -> float:
    """The paper's bound of some keys of one row, channel by channel."""
    query = call.query[0, head, row].double()
    keys_of = call.key[0, head // call.group][keys].double()
    total = 0.0
    for channel in range(call.head_dim):
        q, values = float(query[channel]), keys_of[:, channel]
        total += max(q * float(values.min()), q * float(values.max()))
    return total


def naive(call: AttentionCall, budget: int, page: int, share: str) -> torch.Tensor:
    """What each row of a plain causal call keeps: bool `[heads, q_len, k_len]`."""
    window = call.allowed.window or 1 << 30
    kept = torch.zeros(call.heads, call.q_len, call.k_len, dtype=torch.bool)
    for row in range(call.q_len):
        seen = [key for key in range(row + 1) if row - key < window]
        pages = sorted({key // page for key in seen})
        scores = {
            (head, number): bound(call, head, row, [key for key in seen if key // page == number])
            for head in range(call.heads)
            for number in pages
        }
        for head in range(call.heads):
            group = (
                [head]
                if share == "head"
                else [h for h in range(call.heads) if h // call.group == head // call.group]
            )
            own = row // page
            total = {
                number: sum(scores[member, number] for member in group) for number in pages if number != own
            }
            best = sorted(total, key=lambda number: -total[number])[: max(3, budget // page) - 1]
            for key in seen:
                kept[head, row, key] = key // page in [*best, own]
    return kept


@pytest.mark.parametrize("share", ["head", "sum"])
@pytest.mark.parametrize(("length", "page", "budget"), [(80, 8, 32), (37, 4, 16), (1, 8, 8)])
def test_pages_are_those_of_the_formula(length: int, page: int, budget: int, share: str) -> None:
    call = make_call(length)
    policy = parse(f"quest(token_budget={budget},page={page},share={share},dense_layers=0,phase=both)")
    kept = policy.select(call, Memory()).kept(call, 0, length)[0]
    assert torch.equal(kept.expand(6, -1, -1), naive(call, budget, page, share))


def test_a_page_that_the_model_s_window_cuts_is_bounded_by_what_is_left_of_it() -> None:
    call = make_call(60, window=21)
    policy = parse("quest(token_budget=12,page=4,dense_layers=0,phase=both)")
    assert torch.equal(policy.select(call, Memory()).kept(call, 0, 60)[0], naive(call, 12, 4, "head"))


def test_no_key_of_a_page_exceeds_its_bound() -> None:
    call = make_call(40)
    blocks = Blocks.of(call, 1, 8)
    bounds = page_bounds(blocks)
    scores = call.query[0] @ call.key[0].repeat_interleave(3, 0).transpose(1, 2)
    for number in range(4):
        rows = slice(8 * number + 8, None)
        largest = scores[:, rows, 8 * number : 8 * number + 8].amax(-1)
        assert (largest <= bounds[:, rows, number] + 1e-4).all()


def test_a_growing_own_page_does_not_spoil_the_bounds() -> None:
    """Keys that are not there yet are no zeros: with every q · k negative, a page of zeros would win."""
    call = make_call(10)
    call.key.abs_().neg_()
    call.query.abs_()
    policy = parse("quest(token_budget=1,page=4,dense_layers=0,phase=both)")
    kept = policy.select(call, Memory()).kept(call, 0, 10)[0]
    assert torch.equal(kept, naive(call, 1, 4, "head"))


def test_three_pages_are_the_least() -> None:
    call = make_call(80)
    policy = parse("quest(token_budget=1,page=8,dense_layers=0,phase=both)")
    assert (policy.select(call, Memory()).kept(call, 79, 80)[0].sum(-1) == 24).all()


def test_the_first_layers_are_dense() -> None:
    policy = parse("quest(token_budget=16,page=4)")
    assert isinstance(policy.select(make_call(80, layer=1), Memory()), Everything)
    assert not isinstance(policy.select(make_call(80, layer=2), Memory()), Everything)


@pytest.mark.parametrize(
    "fields", ["token_budget=0", "page=0", "share=max", "dense_layers=-1", "token_budget=0.5"]
)
def test_bad_fields_are_refused(fields: str) -> None:
    with pytest.raises(ValueError, match="quest"):
        parse(f"quest({fields})")
