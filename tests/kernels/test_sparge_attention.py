"""SpargeAttention: only blocks that resemble themselves are judged by their mean; the others are kept."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.policies.sparge_attention import SpargeAttention
from sparselens.kernels.policy import parse
from sparselens.kernels.selection import Everything

from .block_loops import head_tensors, mean_rows, order, softmax, spread
from .conftest import make_call
from .policy_case import chosen, mask_of


def resemblance(rows: Tensor) -> float:
    """The mean cosine of all pairs of rows, a row with itself included."""
    total = 0.0
    for a in rows:
        for b in rows:
            total += float(a @ b / (a.norm() * b.norm()))
    return total / len(rows) ** 2


def in_loops(policy: SpargeAttention, call: AttentionCall) -> Tensor:
    n, block_q, block_k = call.q_len, policy.block_q, policy.block_k
    n_k = -(-n // block_k)
    masks = []
    for head in range(call.heads):
        query, key = head_tensors(call, head)
        key = key - key.mean(0) if policy.smooth_k else key
        judged = [resemblance(key[j * block_k : (j + 1) * block_k]) > policy.similarity for j in range(n_k)]
        queries, keys = mean_rows(query, block_q), mean_rows(key, block_k)
        kept = set()
        for i, mean in enumerate(queries):
            seen = [j for j in range(n_k) if j * block_k <= i * block_q + block_q - 1]
            valid = [j for j in seen if judged[j]]
            best = (
                chosen_of(policy, [float(mean @ keys[j]) * call.scale for j in valid], n_k) if valid else []
            )
            row = {valid[place] for place in best} | {j for j in seen if not judged[j]}
            if resemblance(query[i * block_q : (i + 1) * block_q]) <= policy.similarity:
                row = set(seen)
            row |= {0} if policy.sink else set()
            if not any(j * block_k <= i * block_q for j in row):  # the block's first row would read nothing
                row |= {j for j in seen if j * block_k + block_k > i * block_q}
            kept |= {(i, j) for j in row}
        masks.append(spread(kept, n, block_q, block_k))
    return torch.stack(masks)[None]


def chosen_of(policy: SpargeAttention, scores: list[float], n_k: int) -> list[int]:
    """Places of the scores that are kept: a share of all key blocks, or while the sum stays within cdf."""
    if policy.topk is not None:
        return order(scores)[: max(1, int(policy.topk * n_k))]
    mass = softmax(scores)
    total, count = 0.0, 0
    for place in order(mass):
        total += mass[place]
        count += total <= policy.cdf * sum(mass)
    return order(mass)[: max(1, count)]


@pytest.mark.parametrize("length", [1, 9, 63, 80])
@pytest.mark.parametrize(
    "policy",
    [
        SpargeAttention(0.1, 0.6, block_q=16, block_k=8),
        SpargeAttention(-1.0, 0.3, block_q=16, block_k=8, smooth_k=False),
        SpargeAttention(0.12, topk=0.3, block_q=8, block_k=16, sink=True),
        SpargeAttention(-1.0, topk=0.0, block_q=8, block_k=8),
    ],
)
def test_the_mask_is_the_formula(policy: SpargeAttention, length: int) -> None:
    call = make_call(length, dtype=torch.float64)
    assert torch.equal(mask_of(str(policy), call), in_loops(policy, call))


def row_blocks(mask: Tensor, row: int, block: int) -> list[int]:
    kept: list[int] = mask[row].view(-1, block).any(-1).nonzero()[:, 0].tolist()
    return kept


def uniform(length: int = 40) -> AttentionCall:
    """Queries of zero: every block has the same pooled score; all vectors of a block are equal."""
    call = make_call(length, heads=1, kv_heads=1)
    call.query[:], call.key[:] = 0.0, 1.0
    return call


def test_the_block_that_crosses_the_share_is_left_out_and_one_is_kept_at_least() -> None:
    """Five equal blocks hold a fifth each: 0.5 is crossed by the third, so two are kept."""
    counts = [
        len(
            row_blocks(
                mask_of(
                    f"sparge_attention(similarity=-1.0,cdf={cdf},block_q=8,block_k=8,smooth_k=false)",
                    uniform(),
                )[0, 0],
                39,
                8,
            )
        )
        for cdf in (0.0, 0.1, 0.39, 0.5, 0.79, 0.81, 1.0)
    ]
    assert counts == [1, 1, 1, 2, 3, 4, 5]


def test_topk_counts_the_future_blocks_so_that_early_rows_are_dense() -> None:
    call = make_call(80, dtype=torch.float64)
    mask = mask_of("sparge_attention(similarity=-1.0,topk=0.5,block_q=8,block_k=8)", call)[0, 0]
    assert bool(mask[:40].eq(torch.ones(40, 80, dtype=torch.bool).tril()).all())
    assert len(row_blocks(mask, 79, 8)) == 5


def test_a_key_block_that_does_not_resemble_itself_is_kept_in_every_row() -> None:
    call = make_call(80, heads=1, kv_heads=1)
    call.query[:], call.key[:] = 1.0, 1.0
    call.key[:, :, 16:24] = (
        torch.cat([-torch.eye(16)[:4], torch.eye(16)[:4]]) * 50
    )  # cancels out: the worst score
    text = "sparge_attention(similarity={},cdf=0.05,block_q=8,block_k=8,smooth_k=false)"
    kept, judged = (mask_of(text.format(theta), call)[0, 0] for theta in (0.6, -1.0))
    assert all(2 in row_blocks(kept, row, 8) for row in range(31, 80, 8))
    assert not any(2 in row_blocks(judged, row, 8) for row in range(31, 80, 8))


def test_a_query_block_that_does_not_resemble_itself_keeps_its_whole_rows() -> None:
    call = uniform(80)
    call.query[:] = 1.0
    call.query[:, :, 40:48] = torch.randn(8, 16)
    mask = mask_of("sparge_attention(similarity=0.6,cdf=0.05,block_q=8,block_k=8,smooth_k=false)", call)[0, 0]
    assert row_blocks(mask, 47, 8) == [0, 1, 2, 3, 4, 5]
    assert len(row_blocks(mask, 55, 8)) == 1


def test_the_mean_key_is_taken_off_before_keys_are_compared() -> None:
    """A large common offset makes all keys look alike; without it a random block does not resemble itself."""
    call = make_call(80, dtype=torch.float64)
    call.key[:] += 30.0
    text = "sparge_attention(similarity=0.6,cdf=0.05,block_q=8,block_k=8,smooth_k={})"
    query_alike = replace(call, query=torch.ones_like(call.query))
    assert bool(
        (mask_of(text.format("true"), query_alike) == torch.ones(80, 80, dtype=torch.bool).tril()).all()
    )
    assert int(mask_of(text.format("false"), query_alike).sum()) < 6 * 80 * 81 / 4


def test_no_row_is_empty_where_only_the_later_half_of_the_diagonal_was_chosen() -> None:
    """With 16 queries by 8 keys a block may choose its second diagonal block alone; its first rows cannot see that."""
    call = make_call(32, heads=1, kv_heads=1)
    call.query[:], call.key[:] = 1.0, -1.0
    call.key[:, :, 24:] = 1.0
    mask = mask_of("sparge_attention(similarity=-1.0,cdf=0.1,block_q=16,block_k=8,smooth_k=false)", call)[
        0, 0
    ]
    assert row_blocks(mask, 31, 8) == [2, 3]
    assert row_blocks(mask, 16, 8) == [2]


def test_the_sink_is_kept_when_asked_for() -> None:
    call = make_call(80)
    mask = mask_of("sparge_attention(similarity=-1.0,cdf=0.0,sink=true,block_q=8,block_k=8)", call)
    assert bool(mask[..., 0].all())


@pytest.mark.parametrize("text", ["similarity=-1.0,cdf=0.5", "similarity=0.1,topk=0.3"])
def test_a_wider_budget_is_monotone_and_reaches_everything(text: str) -> None:
    call, policy = make_call(80), parse(f"sparge_attention({text},block_q=8,block_k=8)")
    kept = [mask_of(str(policy.wider(factor)), call) for factor in (0.1, 0.5, 1, 2, 10, 1e18)]
    assert all(not (few & ~many).any() for few, many in pairwise(kept))
    assert int(kept[-1].sum()) == 6 * 80 * 81 // 2
    assert int(kept[1].sum()) < int(kept[3].sum())


def test_with_more_queries_than_keys_in_a_block_a_wider_budget_keeps_more_pairs() -> None:
    """Not a superset: the diagonal that was added for an empty row goes when a block for that row is chosen."""
    call, policy = make_call(80), SpargeAttention(-1.0, 0.5, block_q=16, block_k=8)
    kept = [mask_of(str(policy.wider(factor)), call) for factor in (0.1, 0.5, 1, 2, 10, 1e18)]
    sums = [mask.sum((-1, -2)) for mask in kept]
    assert all(bool((few <= many).all()) for few, many in pairwise(sums))
    assert any(bool((few & ~many).any()) for few, many in pairwise(kept))


def test_it_leaves_decode_dense() -> None:
    assert isinstance(chosen("sparge_attention", make_call(300, q_len=1)), Everything)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("similarity=2.0", "similarity lies in -1 … 1"),
        ("cdf=1.1", "cdf lies in 0 … 1"),
        ("topk=-0.1", "topk lies in 0 … 1 or is none"),
        ("block_k=0", "block_q and block_k are 1 or more"),
    ],
)
def test_bad_fields_are_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse(f"sparge_attention({text})")
