"""Every policy obeys the laws of a policy; each estimator equals its paper's formula in loops."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.kernel import kernel
from sparselens.kernels.policies.oracle_mass import OracleMass
from sparselens.kernels.policies.oracle_topk import OracleTopK
from sparselens.kernels.policies.random import Random
from sparselens.kernels.policies.vertical_slash import VerticalSlash
from sparselens.kernels.policy import Memory, Policy, parse
from sparselens.kernels.selection import Everything, Selection

from .conftest import difference, exact, make_call

REFERENCE = kernel("reference")
BLOCKED = kernel("blocked")

POLICIES = [
    "dense",
    "sliding_window(window=9)",
    "a_shape(sink=3,window=9)",
    "vertical_slash(vertical=6,slash=8,sink=2,recent=3,min_vertical=1,min_slash=1,last_q=16,tile=0)",
    "vertical_slash(vertical=6,slash=8,sink=2,recent=3,min_vertical=1,min_slash=1,last_q=16,tile=16)",
    "per_head(default=a_shape(sink=1,window=5),full=[L0H1,L0H4,L3H0])",
    "per_head(default=oracle_topk(k=5),full=[L0H2])",
    "per_head(default=per_head(default=sliding_window(window=3),full=[L0H0]),full=[L0H5])",
    "oracle_topk(k=1)",
    "oracle_topk(k=30)",
    "oracle_mass(density=0.1)",
    "oracle_mass(mass=0.8)",
    "random(density=0.2)",
    "random(density=0.4,granularity=block,block=16)",
]

GENEROUS = [
    "sliding_window(window=80)",
    "a_shape(sink=0,window=80)",
    "a_shape(sink=80,window=1)",
    "vertical_slash(vertical=80,tile=0)",
    "vertical_slash(slash=80)",
    "vertical_slash",
    "per_head(full=[L0H1])",
    "per_head(default=a_shape(sink=1,window=5),full=[L0H0,L0H1,L0H2,L0H3,L0H4,L0H5])",
    "oracle_topk(k=80)",
    "oracle_mass(density=1.0)",
    "oracle_mass(mass=1.0)",
    "random(density=1.0)",
    "random(density=1.0,granularity=block)",
]


def chosen(text: str, call: AttentionCall) -> Selection:
    return parse(text).selection_for(call, Memory())


def kept(selection: Selection, call: AttentionCall) -> Tensor:
    return selection.kept(call, 0, call.q_len).expand(call.batch, call.heads, -1, -1)


@pytest.mark.parametrize("text", POLICIES)
def test_no_future_key_and_no_empty_row(text: str) -> None:
    call = make_call(80)
    mask = kept(chosen(text, call), call)
    assert not mask.triu(1).any()
    assert mask.any(-1).all()


@pytest.mark.parametrize("text", POLICIES)
def test_a_padded_sequence_is_treated_as_if_alone(text: str) -> None:
    padded = make_call(80, pads=[(0, 0), (23, 0), (0, 11)])
    whole = kept(chosen(text, padded), padded)
    for row, queries, keys, one in padded.sequences():
        alone = kept(chosen(text, one), one)[0]
        assert torch.equal(whole[row][:, queries][:, :, keys], alone), row


@pytest.mark.parametrize("text", GENEROUS)
def test_a_budget_for_everything_is_dense(text: str) -> None:
    call = make_call(80)
    selection = chosen(text, call)
    assert torch.equal(kept(selection, call), kept(Everything(), call))
    assert (
        difference(BLOCKED.attend(call, selection).output, BLOCKED.attend(call, Everything()).output) < 1e-5
    )


@pytest.mark.parametrize(
    ("smaller", "larger"),
    [
        ("sliding_window(window=9)", "sliding_window(window=10)"),
        ("a_shape(sink=3,window=9)", "a_shape(sink=4,window=9)"),
        ("oracle_topk(k=4)", "oracle_topk(k=9)"),
        ("oracle_topk(k=2)", "oracle_topk(k=40)"),
        ("oracle_mass(density=0.1)", "oracle_mass(density=0.3)"),
        ("oracle_mass(mass=0.5)", "oracle_mass(mass=0.9)"),
        ("random(density=0.2)", "random(density=0.5)"),
        ("random(density=0.2,granularity=block,block=8)", "random(density=0.5,granularity=block,block=8)"),
        (
            "vertical_slash(vertical=31,slash=1,recent=9,min_slash=9)",
            "vertical_slash(vertical=40,slash=15,recent=9,min_slash=9)",
        ),
        (
            "vertical_slash(vertical=30,slash=50,recent=9,tile=0)",
            "vertical_slash(vertical=30,slash=50,recent=9,tile=16)",
        ),
    ],
)
def test_a_larger_budget_keeps_a_superset(smaller: str, larger: str) -> None:
    call = make_call(80)
    few, many = kept(chosen(smaller, call), call), kept(chosen(larger, call), call)
    assert not (few & ~many).any()
    assert (many & ~few).any()


@pytest.mark.parametrize(
    "text",
    [
        "dense",
        "sliding_window(window=9)",
        "a_shape(sink=3,window=9)",
        "oracle_topk(k=5)",
        "random(density=0.3)",
        "random(density=0.3,granularity=block,block=16)",
        "per_head(default=a_shape(sink=1,window=5),full=[L0H1])",
    ],
)
def test_decoding_keeps_what_the_last_row_of_the_prefill_keeps(text: str) -> None:
    call = make_call(80)
    last = replace(
        call,
        query=call.query[:, :, -1:],
        query_positions=call.query_positions[:, -1:],
        allowed=replace(call.allowed, query_index=call.allowed.query_index[-1:]),
        phase="decode",
    )
    assert torch.equal(kept(chosen(text, call), call)[:, :, -1:], kept(chosen(text, last), last))


@pytest.mark.parametrize("text", [text for text in POLICIES if "vertical" not in text and "mass" not in text])
def test_keys_after_a_query_do_not_matter(text: str) -> None:
    """The estimators that read the end of the prompt are exempt, and say so (`lookahead`)."""
    call = make_call(80)
    changed = replace(call, query=call.query.clone(), key=call.key.clone())
    changed.query[:, :, 50:] = 5.0
    changed.key[:, :, 50:] = -3.0
    a, b = kept(chosen(text, call), call), kept(chosen(text, changed), changed)
    assert torch.equal(a[:, :, :50], b[:, :, :50])
    assert not parse(text).lookahead


@pytest.mark.parametrize("text", POLICIES)
def test_what_does_not_read_tensors_says_so(text: str) -> None:
    call = make_call(80)
    other = replace(call, query=torch.randn_like(call.query), key=torch.randn_like(call.key))
    same = torch.equal(kept(chosen(text, call), call), kept(chosen(text, other), other))
    assert same != parse(text).reads_tensors


@pytest.mark.parametrize("text", POLICIES)
def test_grouped_queries_choose_as_with_repeated_keys(text: str) -> None:
    call = make_call(80)
    repeated = replace(call, key=call.key.repeat_interleave(3, 1), value=call.value.repeat_interleave(3, 1))
    assert torch.equal(kept(chosen(text, call), call), kept(chosen(text, repeated), repeated))


def test_a_window_counts_the_query_itself() -> None:
    call = make_call(20)
    assert torch.equal(
        kept(chosen("sliding_window(window=1)", call), call)[0, 0], torch.eye(20, dtype=torch.bool)
    )


def test_density_of_a_shape_is_its_formula() -> None:
    call = make_call(50)
    pairs = sum(min(q + 1, 9) + min(3, max(0, q + 1 - 9)) for q in range(50))
    density = chosen("a_shape(sink=3,window=9)", call).density(call)
    assert density.flatten().tolist() == pytest.approx([pairs / (50 * 51 / 2)] * 6)


def test_per_head_keeps_the_named_heads_of_its_layer_dense() -> None:
    text = "per_head(default=a_shape(sink=1,window=5),full=[L0H1,L3H0])"
    for layer, dense in ((0, 1), (3, 0), (7, None)):
        call = make_call(40, layer=layer)
        mask = kept(chosen(text, call), call)
        for head in range(6):
            expected = "dense" if head == dense else "a_shape(sink=1,window=5)"
            assert torch.equal(mask[:, head], kept(chosen(expected, call), call)[:, head])


def test_per_head_respects_the_phase_of_its_default() -> None:
    text = "per_head(default=a_shape(sink=1,window=5,phase=prefill),full=[L0H1])"
    assert isinstance(chosen(text, make_call(40, q_len=1)), Everything)


def test_a_head_the_layer_lacks_raises() -> None:
    with pytest.raises(ValueError, match="layer 0 has 6 heads"):
        chosen("per_head(default=a_shape,full=[L0H6])", make_call(20))


def vertical_slash_in_loops(call: AttentionCall, policy: VerticalSlash) -> Tensor:
    """The paper's rule for one sequence, in loops over float64 weights."""
    n = call.k_len
    weights = exact(call, torch.ones(1, 1, n, n, dtype=torch.bool)).weights[0]
    mask = torch.zeros(call.heads, n, n, dtype=torch.bool)
    for head in range(call.heads):
        by_key, by_distance = [0.0] * n, [0.0] * n
        for q in range(max(0, n - policy.last_q), n):
            for k in range(q + 1):
                by_key[k] += float(weights[head, q, k])
                by_distance[q - k] += float(weights[head, q, k])
        for k in range(min(n, policy.sink)):
            by_key[k] = math.inf
        for distance in range(min(n, policy.recent)):
            by_distance[distance] = math.inf
        v, s = min(n, max(policy.vertical, policy.min_vertical)), min(n, max(policy.slash, policy.min_slash))
        columns = sorted(range(n), key=lambda k, by=by_key: -by[k])[:v]  # type: ignore[misc]
        slashes = sorted(range(n), key=lambda d, by=by_distance: -by[d])[:s]  # type: ignore[misc]
        for q in range(n):
            for k in columns:
                mask[head, q, k] = k <= q
            for distance in slashes:
                if policy.tile:
                    first = q // policy.tile * policy.tile - distance
                    for k in range(max(0, first), min(q, first + policy.tile - 1) + 1):
                        mask[head, q, k] = True
                elif distance <= q:
                    mask[head, q, q - distance] = True
    return mask[None]


@pytest.mark.parametrize("length", [9, 63, 70])
@pytest.mark.parametrize("tile", [0, 16])
def test_vertical_slash_is_the_formula_of_the_paper(length: int, tile: int) -> None:
    policy = VerticalSlash(5, 9, last_q=20, sink=2, recent=3, min_vertical=1, min_slash=1, tile=tile)
    call = make_call(length, heads=3, kv_heads=1)
    assert torch.equal(kept(policy.select(call, Memory()), call), vertical_slash_in_loops(call, policy))


def test_vertical_slash_leaves_decode_dense_unless_told() -> None:
    assert isinstance(chosen("vertical_slash(vertical=3,slash=3)", make_call(300, q_len=1)), Everything)
    assert not isinstance(chosen("vertical_slash(phase=both)", make_call(300, q_len=1)), Everything)


def test_oracle_topk_keeps_the_largest_weights_of_each_row() -> None:
    call = make_call(60)
    weights = exact(call, torch.ones(1, 1, 60, 60, dtype=torch.bool)).weights
    for k in (1, 7, 40):
        mask = kept(OracleTopK(k).select(call, Memory()), call)
        assert torch.equal(mask.sum(-1), torch.arange(1, 61).clamp(max=k).expand(1, 6, -1))
        assert difference((weights * mask).sum(-1), weights.topk(k).values.sum(-1)) < 1e-9


def test_oracle_mass_recalls_the_most_at_its_density() -> None:
    call = make_call(60)
    weights = exact(call, torch.ones(1, 1, 60, 60, dtype=torch.bool)).weights
    mask = kept(OracleMass(density=0.15).select(call, Memory()), call)
    budget = int(0.15 * 6 * 60 * 61 / 2)
    forced = int((mask.sum(-1) == 1).sum())  # rows that may live on their largest key alone
    assert 0 <= int(mask.sum()) - budget + 1 <= forced + 1
    best = weights.flatten().topk(int(mask.sum())).values.sum()
    recalled = (weights * mask).sum()
    assert float(recalled) <= float(best) + 1e-9
    assert float(recalled) >= 0.999 * float(weights.flatten().topk(budget).values.sum())


@pytest.mark.parametrize("sinks", [False, True])
def test_oracle_mass_reaches_the_mass_asked_for_with_no_key_to_spare(sinks: bool) -> None:
    call = make_call(60, sinks=sinks)
    weights = exact(call, torch.ones(1, 1, 60, 60, dtype=torch.bool)).weights
    asked = 0.8
    mask = kept(OracleMass(mass=asked).select(call, Memory()), call)
    total = float((weights * mask).sum())
    assert asked <= total / 360 < asked + 1e-3
    forced = weights.amax(-1, keepdim=True)  # a row's largest key may lie below the threshold
    smallest = float(weights[mask & (weights < forced)].min())
    below = float(forced[forced < smallest].sum())
    assert total - smallest - below < asked * 360 + 1e-4


def test_random_has_the_density_it_declares() -> None:
    call = make_call(256)
    for density in (0.05, 0.3, 0.8):
        found = Random(density).select(call, Memory()).density(call)
        expected = sum(max(1.0, density * (q + 1)) for q in range(256)) / (256 * 257 / 2)
        deviation = math.sqrt(density * (1 - density) / (256 * 257 / 2))
        assert bool((found - expected).abs().max() < 5 * deviation)
    tiles = [Random(0.4, "block", seed, 16).select(call, Memory()).tiles(call, 16).some for seed in range(20)]
    expected = sum(max(1.0, 0.4 * (row + 1)) for row in range(16)) / 136
    share = torch.stack([tile.float().sum((-1, -2)).mean() / 136 for tile in tiles]).mean()
    assert float(share) == pytest.approx(expected, abs=5 * math.sqrt(0.24 / (136 * 120)))


def test_random_draws_differ_by_seed_layer_and_head_and_repeat_otherwise() -> None:
    def mask(policy: Policy, layer: int = 0) -> Tensor:
        call = make_call(64, layer=layer)
        return kept(policy.select(call, Memory()), call)

    first = mask(Random(0.3))
    assert torch.equal(first, mask(Random(0.3)))
    for other in (mask(Random(0.3, seed=1)), mask(Random(0.3), layer=1), first.roll(1, 1)):
        agree = float((first == other).float().tril().sum() / (6 * 64 * 65 / 2))
        assert abs(agree - 0.58) < 0.05  # 0.3² + 0.7², as for independent draws


def test_random_keeps_the_diagonal() -> None:
    call = make_call(64)
    for text in ("random(density=0.01)", "random(density=0.01,granularity=block,block=16)"):
        assert kept(chosen(text, call), call).diagonal(dim1=-2, dim2=-1).all()


@pytest.mark.parametrize("text", POLICIES)
def test_both_kernels_agree_under_every_policy(text: str) -> None:
    call = make_call(150)
    selection = chosen(text, call)
    a, b = REFERENCE.attend(call, selection), BLOCKED.attend(call, selection)
    assert difference(a.output, b.output) < 1e-5
    assert difference(a.lse, b.lse) < 1e-5
