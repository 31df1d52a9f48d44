"""SnapKV's choice after the prefill, retold in loops; what decode reads, what is logged, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.memory import Memory
from sparselens.kernels.policy import parse
from sparselens.kernels.selection import Everything
from sparselens.kernels.walk import walked

from .conftest import exact, make_call
from .policy_case import kept

TEXT = "snap_kv(capacity=14,window=8,kernel=5,local=4,prefix=2)"


def staying(
    call: AttentionCall, prefill: int, capacity: int, window: int, kernel: int, local: int, prefix: int
) -> list[set[int]]:
    """The positions that each key-value head keeps of the prompt."""
    weights = exact(call, torch.ones(1, 1, call.q_len, call.k_len, dtype=torch.bool)).weights[0]
    found = []
    for group in range(call.kv_heads):
        importance = [0.0] * prefill
        for row in range(max(0, prefill - window), prefill):
            for key in range(prefill):
                heads = range(group * call.group, (group + 1) * call.group)
                importance[key] += sum(float(weights[head, row, key]) for head in heads) / call.group
        half = kernel // 2
        pooled = [
            sum(importance[key + step] for step in range(-half, half + 1) if 0 <= key + step < prefill)
            / kernel
            for key in range(prefill)
        ]
        forced = set(range(prefix)) | set(range(prefill - local, prefill))
        others = sorted(set(range(prefill)) - forced, key=lambda key: -pooled[key])
        found.append({key for key in forced | set(others[: capacity - len(forced)]) if key >= 0})
    return found


def rows_of(mask: Tensor, row: int) -> list[set[int]]:
    return [set(mask[0, head, row].nonzero()[:, 0].tolist()) for head in range(mask.shape[1])]


@pytest.mark.parametrize(("length", "prefill"), [(60, 45), (60, 15), (30, 29)])
def test_decode_reads_what_stayed_and_what_came_later(length: int, prefill: int) -> None:
    call, memory = make_call(length), Memory()
    mask = kept(walked(parse(TEXT), call, memory, prefill), call)
    stays = staying(call, prefill, 14, 8, 5, 4, 2)
    assert torch.equal(mask[:, :, :prefill], call.allowed.rows(0, prefill).expand(1, 6, -1, -1))
    for row in range(prefill, length):
        expected = [stays[head // 3] | set(range(prefill, row + 1)) for head in range(6)]
        assert rows_of(mask, row) == expected, row


def test_what_left_is_logged_once_after_the_prefill() -> None:
    call, memory = make_call(60), Memory()
    walked(parse(TEXT), call, memory, 45)
    stays = staying(call, 45, 14, 8, 5, 4, 2)
    logged = {(entry.kv_head, entry.step): set(entry.positions.tolist()) for entry in memory.removals}
    assert logged == {(group, 0): set(range(45)) - stays[group] for group in range(2)}
    assert len(memory.removals) == 2


def test_a_prompt_within_the_capacity_stays_whole() -> None:
    call, memory = make_call(30), Memory()
    assert isinstance(walked(parse(TEXT), call, memory, 14), Everything)
    assert not memory.removals


def test_the_end_of_a_prompt_fed_in_parts_decides() -> None:
    """The last part's queries are the window; an earlier part's choice is forgotten, and nothing was logged for it."""
    call, whole, parts = make_call(46), Memory(), Memory()
    policy = parse("snap_kv(capacity=14,window=8,kernel=5,local=4,prefix=2)")
    walked(policy, call, whole, 45)
    for start, stop in ((0, 25), (25, 45)):
        index = torch.arange(start, stop)
        part = call.sequence(0, index, torch.arange(stop))
        policy.selection_for(part, parts)
    last = replace(call.sequence(0, torch.tensor([45]), torch.arange(46)), phase="decode", step=1)
    policy.selection_for(last, parts)
    assert [entry.positions.tolist() for entry in parts.removals] == [
        entry.positions.tolist() for entry in whole.removals
    ]


def test_below_dense_below_nothing_is_evicted() -> None:
    call = make_call(60)
    policy = replace(parse(TEXT), dense_below=50)
    assert isinstance(walked(policy, call, Memory(), 45), Everything)
    assert not isinstance(walked(policy, call, Memory(), 55), Everything)


@pytest.mark.parametrize(
    "fields",
    [
        "capacity=0",
        "kernel=4",
        "window=0",
        "local=0",
        "prefix=-1",
        "capacity=100,local=100,prefix=4",
        "phase=prefill",
    ],
)
def test_bad_fields_are_refused(fields: str) -> None:
    with pytest.raises(ValueError, match="snap_kv"):
        parse(f"snap_kv({fields})")


def test_a_narrower_capacity_still_holds_what_is_forced() -> None:
    policy = parse(TEXT)
    assert [policy.wider(factor) for factor in (2.0, 0.001)] == [
        replace(policy, capacity=28),
        replace(policy, capacity=6),
    ]
