"""H2O's cache and its mask form, retold in loops over float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.memory import Memory
from sparselens.kernels.policy import parse
from sparselens.kernels.walk import walked

from .conftest import exact, make_call
from .policy_case import kept


class NaiveCache:
    """The cache of one head (or one group): a list of positions, a sum each."""

    def __init__(self, heavy: int, recent: int) -> None:
        self.heavy, self.recent = heavy, recent
        self.sums: dict[int, float] = {}

    def evict(self) -> set[int]:
        """Drop all but the recent and the heaviest of the others; return what left."""
        held = sorted(self.sums)
        if len(held) <= self.heavy + self.recent:
            return set()
        newest = held[len(held) - self.recent :]
        others = sorted(set(held) - set(newest), key=lambda key: (-self.sums[key], key))
        gone = set(others[self.heavy :])
        for key in gone:
            del self.sums[key]
        return gone


def weights_of(call: AttentionCall, head: int, row: int, keys: list[int]) -> dict[int, float]:
    """The softmax of one row of one head over some keys."""
    query = call.query[0, head, row].double()
    scores = torch.stack([query @ call.key[0, head // call.group, key].double() for key in keys]) * call.scale
    return dict(zip(keys, torch.softmax(scores, 0).tolist(), strict=True))


def naive(
    call: AttentionCall, prefill: int, heavy: int, recent: int, share: str
) -> tuple[list[list[set[int]]], dict[tuple[int, int], set[int]]]:
    """What each head reads in each decoded row, and what left each key-value head after which step."""
    size = 1 if share == "head" else call.group
    caches = [NaiveCache(heavy, recent) for _ in range(call.heads // size)]
    left: dict[tuple[int, int], set[int]] = {}
    for head in range(call.heads):
        for row in range(prefill):
            for key, weight in weights_of(call, head, row, list(range(row + 1))).items():
                sums = caches[head // size].sums
                sums[key] = sums.get(key, 0.0) + weight
    reads = []
    for row in range(prefill, call.q_len):
        for number, cache in enumerate(caches):
            if gone := cache.evict():
                left[number, row - prefill] = gone
        reads.append([set(caches[head // size].sums) | {row} for head in range(call.heads)])
        given = [weights_of(call, head, row, sorted(reads[-1][head])) for head in range(call.heads)]
        for head in range(call.heads):
            sums = caches[head // size].sums
            for key, weight in given[head].items():
                sums[key] = sums.get(key, 0.0) + weight
    return reads, left


def rows_of(mask: Tensor, row: int) -> list[set[int]]:
    return [set(mask[0, head, row].nonzero()[:, 0].tolist()) for head in range(mask.shape[1])]


@pytest.mark.parametrize("share", ["sum", "head"])
@pytest.mark.parametrize(
    ("length", "prefill", "heavy", "recent"), [(48, 30, 5, 4), (30, 1, 4, 3), (30, 20, 0, 6)]
)
def test_a_cache_is_the_loops_one(length: int, prefill: int, heavy: int, recent: int, share: str) -> None:
    call, memory = make_call(length), Memory()
    policy = parse(f"h2o(heavy={heavy},recent={recent},share={share})")
    mask = kept(walked(policy, call, memory, prefill), call)
    reads, left = naive(call, prefill, heavy, recent, share)
    for row in range(prefill, length):
        assert rows_of(mask, row) == reads[row - prefill], row
        assert all(len(held) <= heavy + recent + 1 for held in reads[row - prefill])
    if share == "sum":
        assert {
            (entry.kv_head, entry.step): set(entry.positions.tolist()) for entry in memory.removals
        } == left


def test_a_key_of_separate_caches_has_left_when_no_head_holds_it() -> None:
    call, memory = make_call(48), Memory()
    mask = kept(walked(parse("h2o(heavy=5,recent=4,share=head)"), call, memory, 30), call)[0]
    for group in range(2):
        gone: set[int] = set()
        for row in range(30, 48):
            gone |= {
                key
                for entry in memory.removals
                if entry.kv_head == group and entry.step == row - 30
                for key in entry.positions.tolist()
            }
            held = set(mask[3 * group : 3 * group + 3, row].any(0).nonzero()[:, 0].tolist())
            assert held == set(range(row + 1)) - gone


def test_what_left_is_never_read_again() -> None:
    call, memory = make_call(60), Memory()
    mask = kept(walked(parse("h2o(heavy=5,recent=4)"), call, memory, 30), call)[0]
    for entry in memory.removals:
        heads = slice(3 * entry.kv_head, 3 * entry.kv_head + 3)
        assert not mask[heads, 30 + entry.step :][..., entry.positions].any()


def test_both_phases_evict_a_prompt_as_if_it_were_decoded() -> None:
    call = make_call(40)
    policy = parse("h2o(heavy=4,recent=3,phase=both)")
    whole = kept(policy.selection_for(call, Memory()), call)
    assert torch.equal(whole, kept(walked(policy, call, Memory(), 1), call))
    assert torch.equal(whole, kept(walked(policy, call, Memory(), 25), call))


def test_the_mask_form_sums_over_all_rows_and_adds_a_band() -> None:
    call = make_call(40)
    policy = parse("h2o(heavy=6,recent=4,form=global,share=head,phase=prefill)")
    mask = kept(policy.selection_for(call, Memory()), call)[0]
    sums = exact(call, torch.ones(1, 1, 40, 40, dtype=torch.bool)).weights[0].sum(1)
    for head in range(6):
        columns = set(sums[head].topk(6).indices.tolist())
        for row in range(40):
            expected = {key for key in range(row + 1) if key in columns or row - key <= 4}
            assert set(mask[head, row].nonzero()[:, 0].tolist()) == expected
    assert policy.lookahead
    assert not parse("h2o").lookahead


def test_keys_seen_while_everything_was_kept_count_too() -> None:
    """Below `dense_below` nothing leaves, and the sums go on."""
    call, memory = make_call(48), Memory()
    policy = parse("h2o(heavy=5,recent=4)")
    late = kept(walked(replace(policy, dense_below=36), call, memory, 30), call)
    assert torch.equal(late[:, :, :35], call.allowed.rows(0, 35).expand(1, 6, -1, -1))
    assert min(entry.step for entry in memory.removals) == 5
    assert (late[:, :, 35].sum(-1) == 10).all()
    assert torch.equal(late, kept(walked(policy, call, Memory(), 35), call))


@pytest.mark.parametrize("fields", ["heavy=-1", "recent=-1", "share=min", "form=mask", "form=global"])
def test_bad_fields_are_refused(fields: str) -> None:
    with pytest.raises(ValueError, match="h2o"):
        parse(f"h2o({fields})")
