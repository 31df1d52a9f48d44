"""Statistics: the reference against loops, the blocked kernel against the reference, and the closed forms."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sparselens.kernels.blocked import Blocked
from sparselens.kernels.call import AttentionCall
from sparselens.kernels.kernel import Attended, kernel
from sparselens.kernels.selection import Band, Bits, Everything, Mixture, Selection, Stripes, Tiles
from sparselens.kernels.statistics import (
    NAMES,
    Pools,
    Want,
    kept_mass,
    restriction_js,
    weights_at,
)
from sparselens.kernels.tile_statistics import largest

from .conftest import difference, exact, make_call, random_tiles

REFERENCE = kernel("reference")
BLOCKED = kernel("blocked")


def everything_wanted(call: AttentionCall, **sizes: int) -> Want:
    gather = torch.randint(-1, call.k_len, (call.batch, call.heads, call.q_len, 5))
    return Want(NAMES, gather=gather, **sizes)


def in_loops(call: AttentionCall, keep: Tensor, want: Want) -> dict[str, Tensor]:
    """The table of `kernels/statistics.py` retold for one sequence without padding, cell by cell."""
    weights = exact(call, keep).weights
    pool = math.ceil(max(call.q_len, call.k_len) / want.cells)
    size = math.ceil(max(call.q_len, call.k_len) / pool)
    shape = (1, call.heads, call.q_len)
    found = {
        name: torch.zeros(shape)
        for name in ("entropy", "sink_mass", "previous_mass", "local_mass", "distance")
    }
    found["received"] = torch.zeros(1, call.heads, call.k_len)
    found["pooled"] = torch.zeros(1, call.heads, size, size)
    queries = call.query_positions[0].tolist()
    rows_in = [sum(q // pool == cell for q in queries) for cell in range(size)]
    for head in range(call.heads):
        for row, q in enumerate(queries):
            for k in range(call.k_len):
                p = float(weights[0, head, row, k])
                if p == 0:
                    continue
                found["entropy"][0, head, row] -= p * math.log(p)
                found["sink_mass"][0, head, row] += p * (k == 0)
                found["previous_mass"][0, head, row] += p * (k == q - 1)
                found["local_mass"][0, head, row] += p * (q - k < want.local)
                found["distance"][0, head, row] += p * (q - k)
                found["received"][0, head, k] += p
                found["pooled"][0, head, q // pool, k // pool] += p / rows_in[q // pool]
    return found


@pytest.mark.parametrize("q_len", [23, 1])
def test_reference_statistics_equal_loops(q_len: int) -> None:
    call = make_call(23, heads=2, kv_heads=1, q_len=q_len)
    keep = torch.rand(1, 2, q_len, 23) < 0.6
    want = everything_wanted(call, local=5, cells=4)
    statistics = REFERENCE.attend(call, Bits.of(keep), want).statistics
    for name, expected in in_loops(call, keep, want).items():
        assert difference(statistics[name], expected) < 1e-4, name
    weights = exact(call, keep).weights
    assert difference(statistics["top_weight"], weights.topk(8).values) < 1e-5
    assert want.gather is not None
    gathered = weights.gather(-1, want.gather.clamp(min=0)).masked_fill(want.gather < 0, 0)
    assert difference(statistics["gathered"], gathered) < 1e-5


def assert_statistics_agree(call: AttentionCall, selection: Selection, want: Want) -> None:
    expected, found = REFERENCE.attend(call, selection, want), BLOCKED.attend(call, selection, want)
    assert set(found.statistics) == set(expected.statistics)
    for name, value in expected.statistics.items():
        assert found.statistics[name].shape == value.shape, name
        assert found.statistics[name].dtype == value.dtype, name
        if name != "top_index":
            scale = max(1.0, float(value.abs().max()))
            assert difference(found.statistics[name], value) < 1e-5 * scale, (name, selection.kind)
    assert_top_is_what_it_says(call, found)


def assert_top_is_what_it_says(call: AttentionCall, found: Attended) -> None:
    """Indices are distinct, carry the weights beside them, and are -1 exactly where the weight is 0."""
    index, weight = found.statistics["top_index"], found.statistics["top_weight"]
    assert difference(weights_at(call, found.lse, index), weight) < 1e-5
    assert torch.equal(index < 0, weight == 0)
    assert bool((weight.diff(dim=-1) <= 0).all())
    ordered = index.long().sort(-1).values
    assert not bool(((ordered.diff(dim=-1) == 0) & (ordered[..., 1:] >= 0)).any())


@pytest.mark.parametrize("length", [1, 5, 63, 111, 300])
def test_blocked_statistics_equal_the_reference(length: int) -> None:
    call = make_call(length)
    for selection in (
        Everything(),
        Band(4, 20),
        Tiles(random_tiles(length, 6, 128)),
        Stripes(torch.randint(0, length, (1, 6, 5)), torch.randint(0, length, (1, 6, 4))),
        Bits.of(torch.rand(1, 6, length, length) < 0.2),
        Mixture([((0, 2, 4, 5), Band(2, 9)), ((1, 3), Everything())]),
    ):
        assert_statistics_agree(call, selection, everything_wanted(call))


@pytest.mark.parametrize(
    "options",
    [
        {"window": 40},
        {"softcap": 5.0},
        {"sinks": True},
        {"q_len": 1},
        {"q_len": 70},
        {"pads": [(0, 0), (30, 0)]},
        {"pads": [(0, 25), (4, 3)]},
        {"batch": 2},
    ],
)
def test_blocked_statistics_equal_the_reference_under_every_option(options: dict[str, object]) -> None:
    call = make_call(200, **options)  # type: ignore[arg-type]
    for selection in (Everything(), Band(4, 20)):
        assert_statistics_agree(call, selection, everything_wanted(call))


@pytest.mark.parametrize(
    "sizes", [{"cells": 7}, {"cells": 1000}, {"top": 1}, {"top": 40}, {"local": 1}, {"local": 300}]
)
def test_sizes_are_free(sizes: dict[str, int]) -> None:
    call = make_call(140)
    for selection in (Everything(), Band(4, 20)):
        assert_statistics_agree(call, selection, everything_wanted(call, **sizes))


def test_each_statistic_alone_is_the_same_as_with_all_others() -> None:
    call = make_call(150)
    want = everything_wanted(call)
    together = BLOCKED.attend(call, Band(3, 30), want).statistics
    for name in NAMES:
        alone = replace(want, names=frozenset({name}), gather=want.gather if name == "gathered" else None)
        for key, value in BLOCKED.attend(call, Band(3, 30), alone).statistics.items():
            assert difference(value, together[key]) < 1e-5, name


def test_statistics_do_not_change_the_output() -> None:
    call = make_call(150)
    plain = Blocked().attend_plan(call, Blocked().plan(call, Everything()))
    watched = BLOCKED.attend(call, Everything(), everything_wanted(call))
    assert torch.equal(plain.output, watched.output)
    assert torch.equal(plain.lse, watched.lse)


def test_a_uniform_row_has_the_entropy_of_its_keys() -> None:
    call = make_call(64)
    uniform = replace(call, query=torch.zeros_like(call.query))
    for one in (REFERENCE, BLOCKED):
        entropy = one.attend(uniform, Everything(), Want(frozenset({"entropy"}))).statistics["entropy"]
        assert difference(entropy, torch.log(torch.arange(1, 65).double()).expand(1, 6, -1)) < 1e-5


def test_mass_is_conserved() -> None:
    call = make_call(130)
    found = BLOCKED.attend(call, Band(4, 20), Want(frozenset({"received", "pooled"}))).statistics
    assert float(found["received"].sum()) == pytest.approx(130 * 6, rel=1e-5)
    assert difference(found["pooled"].sum(-1), torch.ones(1, 6, Pools.of(call, 64).size)) < 1e-5


@pytest.mark.parametrize("sinks", [False, True])
def test_kept_mass_is_the_dense_mass_on_kept_keys(sinks: bool) -> None:
    call = make_call(80, sinks=sinks)
    keep = torch.rand(1, 6, 80, 80) < 0.3
    keep[..., 3, :] = False
    dense = exact(call, torch.ones_like(keep)).weights
    expected = (dense * keep).sum(-1)
    for one in (REFERENCE, BLOCKED):
        lse, everything = one.attend(call, Bits.of(keep)).lse, one.attend(call, Everything()).lse
        assert difference(kept_mass(call, lse, everything), expected) < 1e-5


def test_js_of_a_restriction_equals_its_definition() -> None:
    p = torch.softmax(torch.randn(50, 30, dtype=torch.float64) * 2, -1)
    keep = torch.rand(50, 30) < 0.5
    keep[:, 0] = True
    q = p * keep / (p * keep).sum(-1, keepdim=True)
    middle = (p + q) / 2
    definition = ((p * (p / middle).log()).sum(-1) + torch.special.xlogy(q, q / middle).sum(-1)) / 2
    assert difference(restriction_js((p * keep).sum(-1)), definition) < 1e-12
    assert float(restriction_js(torch.tensor(1.0))) == 0
    assert float(restriction_js(torch.tensor(0.0))) == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    "options", [{}, {"window": 9}, {"softcap": 4.0}, {"pads": [(3, 0), (0, 5)]}, {"sinks": True}]
)
def test_weights_at_keys_equal_the_matrix(options: dict[str, object]) -> None:
    call = make_call(50, **options)  # type: ignore[arg-type]
    index = torch.randint(-1, 50, (call.batch, 6, 50, 7))
    lse = REFERENCE.attend(call, Everything()).lse
    matrix = exact(call, torch.ones(1, 1, 50, 50, dtype=torch.bool)).weights
    expected = matrix.gather(-1, index.clamp(min=0)).masked_fill(index < 0, 0)
    assert difference(weights_at(call, lse, index), expected) < 1e-5


@pytest.mark.parametrize("width", [8, 64, 66, 127, 128, 130, 256, 384, 1000, 1024, 1920])
def test_largest_equals_topk_with_and_without_ties(width: int) -> None:
    for values in (torch.rand(20, width), torch.randint(0, 4, (20, width)).float()):
        for n in (1, 8, min(20, width)):
            found, place = largest(values, n)
            assert torch.equal(found, values.topk(n).values)
            assert torch.equal(values.gather(1, place), found)
            assert all(len(set(row)) == n for row in place.tolist())


def test_bad_wants_raise() -> None:
    with pytest.raises(ValueError, match="no statistic named"):
        Want(frozenset({"entropies"}))
    with pytest.raises(ValueError, match="gather"):
        Want(frozenset({"gathered"}))
