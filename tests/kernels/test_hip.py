"""HiP's tree search is the one of version 1.0, told in loops, with its representative and its neighbours."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.parts.tree import Tree, extended
from sparselens.kernels.policies.hip import HiP
from sparselens.kernels.policy import Memory

from .conftest import make_call
from .policy_case import kept


def block_scores(call: AttentionCall, policy: HiP, head: int, rows: range, channels: int) -> list[float]:
    """The largest product of every block of keys with a strided row of the block, far enough behind it."""
    query, key = call.query[0, head].double(), call.key[0, head // call.group].double()
    strength = query[rows.start : rows.stop].abs().sum(0)
    read = sorted(range(call.head_dim), key=lambda c: -float(strength[c]))[: channels or call.head_dim]
    product = (query[:, read] @ key[:, read].T).tolist()
    near = max(0, policy.window - policy.block_q - policy.block_k)
    scores = []
    for first in range(0, call.k_len, policy.block_k):
        best = -math.inf
        for k in range(first, min(first + policy.block_k, call.k_len)):
            for q in rows[:: policy.stride]:
                if q - k >= near:
                    best = max(best, product[q][k])
        scores.append(best)
    return scores


def searched(tables: list[list[float]], end: int, policy: HiP, wanted: int, least: int) -> list[int]:
    """The tree, in lists of nodes `(round's number of nodes, node)`."""
    total = math.ceil(end / policy.block_k)
    width, turn = min(end, wanted * policy.block_k), 0
    nodes = list(range(math.ceil(width / policy.block_k)))
    while width < end:
        old, width = math.ceil(width / policy.block_k), min(2 * width, end)
        count = math.ceil(width / policy.block_k)
        children = [c for node in nodes for c in range(node * count // old, (node + 1) * count // old)]
        where = []
        for child in children:
            at = (
                child * end // count
                if policy.representative == "first"
                else (2 * child + 1) * end // (2 * count)
            )
            where.append(child if count == total else at // policy.block_k)
        table = tables[min(turn, len(tables) - 1)]
        keep = min(total, max(least, int(min(wanted, total) * count / total + 1e-9)))
        order = sorted(zip((-table[block] for block in where), children, strict=True))
        nodes = sorted(child for _, child in order[:keep])
        turn += 1
    return nodes


def hip_in_loops(call: AttentionCall, policy: HiP) -> Tensor:
    n = call.k_len
    mask = torch.zeros(1, call.heads, n, n, dtype=torch.bool)
    times = policy.resolution if math.ceil(policy.mask_k / policy.block_k) > 64 else 1
    wanted = math.ceil(policy.mask_k // times / policy.block_k)
    least = math.ceil(math.ceil(policy.mask_k / 2) // times / policy.block_k)
    sparse = policy.channels > 0 and n >= policy.channels_from and wanted >= 128
    for head in range(call.heads):
        for begin in range(0, n, policy.block_q):
            rows = range(begin, min(begin + policy.block_q, n))
            sizes = [policy.channels // 2, policy.channels] if sparse else [0]
            tables = [block_scores(call, policy, head, rows, size) for size in sizes]
            columns, last = set(), -1
            for block in searched(tables, rows.stop, policy, wanted, least):
                for _ in range(times):
                    last = max(last + 1, block)
                    columns.add(last)
            for q in rows:
                for k in range(q + 1):
                    block = k // policy.block_k
                    forced = block * policy.block_k < policy.sink or begin < policy.dense_rows or k >= begin
                    recent = (block + 1) * policy.block_k > rows.stop - policy.window
                    mask[0, head, q, k] = block in columns or forced or recent
    return mask


@pytest.mark.parametrize("length", [80, 71])
@pytest.mark.parametrize("representative", ["first", "middle"])
def test_it_is_the_tree_search_in_loops(length: int, representative: str) -> None:
    policy = HiP(8, window=12, sink=2, block_q=8, block_k=2, representative=representative)
    call = make_call(length, heads=4, kv_heads=2, dtype=torch.float64)
    mask = kept(policy.select(call, Memory()), call)
    assert torch.equal(mask, hip_in_loops(call, policy))
    assert int(mask.sum()) < call.heads * length * (length + 1) // 2


def test_many_blocks_are_searched_at_half_resolution_with_few_channels() -> None:
    """More than 64 blocks: half as many are searched, each brings its neighbour; from 128 on, few channels."""
    policy = HiP(66, window=4, sink=1, block_q=64, block_k=1, channels=4, channels_from=0)
    call = make_call(200, heads=2, kv_heads=1, dtype=torch.float64)
    assert torch.equal(kept(policy.select(call, Memory()), call), hip_in_loops(call, policy))
    policy = HiP(256, window=4, sink=1, block_q=128, block_k=1, channels=4, channels_from=0)
    call = make_call(384, heads=1, kv_heads=1, dtype=torch.float64)
    mask = kept(policy.select(call, Memory()), call)
    assert torch.equal(mask, hip_in_loops(call, policy))
    assert not torch.equal(mask, kept(policy(channels=0).select(call, Memory()), call))


def test_a_half_is_judged_by_its_representative_alone() -> None:
    """A needle is found where the first block of its half scores, and lost where only the needle does."""
    scores = torch.zeros(1, 64)
    scores[0, 45] = 9.0
    tree = Tree(64, 1, 4, 2)
    assert not tree.found([scores])[0, 45]
    scores[0, [40, 44]] = 5.0  # the first blocks of the halves that lead to it
    found = tree.found([scores])[0]
    assert found[45]
    assert int(found.sum()) == 4
    middle = Tree(64, 1, 4, 2, "middle").found([scores])[0]
    assert not torch.equal(middle, found)


def test_neighbours_go_to_the_next_free_block_and_are_lost_beyond_the_end() -> None:
    found = torch.tensor([[1, 0, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1, 1]], dtype=torch.bool)
    expected = torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0, 1, 1]], dtype=torch.bool)
    assert torch.equal(extended(found, 2), expected)
    assert torch.equal(extended(found, 1), found)


def test_window_and_sink_come_on_top_and_first_rows_can_be_dense() -> None:
    call = make_call(96)
    policy = HiP(4, window=16, sink=6, block_q=8, block_k=2)
    mask = kept(policy.select(call, Memory()), call)
    assert mask[:, :, 90, :6].all()
    assert mask[:, :, 90, 80:91].all()
    assert not mask[:, :, 40, :41].all()
    dense = kept(policy(dense_rows=48).select(call, Memory()), call)
    assert torch.equal(
        dense[:, :, :48, :48], torch.ones(48, 48, dtype=torch.bool).tril().expand(1, 6, -1, -1)
    )
    assert torch.equal(dense[:, :, 48:], mask[:, :, 48:])


def test_one_decoded_token_is_a_block_of_its_own() -> None:
    call = make_call(80, q_len=1, dtype=torch.float64)
    policy = HiP(8, window=8, sink=2, block_q=8, block_k=2)
    mask = kept(policy.select(call, Memory()), call)[0, :, 0]
    assert mask[:, 72:].all()
    assert not mask.all()


def test_twice_the_length_keeps_everything() -> None:
    call = make_call(150)
    mask = kept(HiP(300, window=8, sink=2).select(call, Memory()), call)
    assert int(mask.sum()) == 6 * 150 * 151 // 2


def test_bad_fields_are_refused() -> None:
    for fields in (
        {"variant": "v2"},
        {"mask_k": 0},
        {"block_k": 0},
        {"window": -1},
        {"representative": "last"},
    ):
        with pytest.raises(ValueError, match=f"hip: {next(iter(fields))} is"):
            HiP(**fields)  # type: ignore[arg-type]
