"""The blocked kernel equals the reference: every selection, odd sizes, groups, padding, poisoned buffers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sparselens.kernels.blocked import Blocked
from sparselens.kernels.call import AttentionCall
from sparselens.kernels.kernel import kernel
from sparselens.kernels.selection import (
    Band,
    Bits,
    Everything,
    KeyList,
    Mixture,
    Selection,
    Stripes,
    Tiles,
)
from sparselens.kernels.statistics import Want

from .conftest import TOLERANCE, difference, exact, make_call, random_tiles

REFERENCE = kernel("reference")
BLOCKED = kernel("blocked")


def selections(call: AttentionCall) -> list[Selection]:
    """One of each kind, of each granularity that meets the kernel's tiles differently."""
    heads, q_len, k_len = call.heads, call.q_len, call.k_len
    odd = torch.arange(heads) % 2 == 1
    odd_heads = tuple(odd.nonzero()[:, 0].tolist())
    even_heads = tuple((~odd).nonzero()[:, 0].tolist())
    chosen: list[Selection] = [
        Everything(),
        Band(4, 20),
        Band(0, 150),
        Tiles(random_tiles(k_len, heads, 128), 128, 128),
        Tiles(random_tiles(k_len, 1, 128), 128, 128),
        Tiles(random_tiles(k_len, heads, 48), 48, 48),
        Stripes(torch.randint(0, k_len, (1, heads, 5)), torch.randint(0, k_len, (1, heads, 7))),
        Stripes(torch.randint(0, k_len, (1, 1, 5)), torch.randint(0, k_len, (1, 1, 3)), tile=64),
        KeyList(torch.randint(-1, k_len, (call.batch, heads, q_len, 6), dtype=torch.int32)),
        Bits.of(torch.rand(1, heads, q_len, k_len) < 0.3),
    ]
    if heads > 1:
        chosen.append(Mixture([(even_heads, Band(1, 30)), (odd_heads, Everything())]))
    return chosen


def assert_equal_to_reference(call: AttentionCall, selection: Selection) -> None:
    expected, found = REFERENCE.attend(call, selection), BLOCKED.attend(call, selection)
    assert difference(found.output, expected.output) < TOLERANCE, selection.kind
    assert difference(found.lse, expected.lse) < TOLERANCE, selection.kind
    assert found.output.dtype == call.query.dtype


@pytest.mark.parametrize("length", [1, 63, 111, 128, 300, 1000])
def test_any_length(length: int) -> None:
    call = make_call(length)
    for selection in selections(call):
        assert_equal_to_reference(call, selection)


@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (4, 2), (9, 3), (8, 1), (1, 1)])
def test_any_group(heads: int, kv_heads: int) -> None:
    call = make_call(200, heads, kv_heads)
    for selection in selections(call):
        assert_equal_to_reference(call, selection)


@pytest.mark.parametrize(
    "options",
    [
        {"window": 50},
        {"softcap": 5.0},
        {"sinks": True},
        {"q_len": 1},
        {"q_len": 70},
        {"q_len": 1, "window": 40},
        {"extra": lambda batch, query, key: (batch >= 0) & ((query // 10 != 3) | (key % 2 == 0))},
        {"window": 90, "softcap": 4.0, "sinks": True},
    ],
)
def test_every_option_of_a_call(options: dict[str, object]) -> None:
    call = make_call(260, **options)  # type: ignore[arg-type]
    for selection in selections(call):
        assert_equal_to_reference(call, selection)


@pytest.mark.parametrize("pads", [[(0, 0), (37, 0)], [(0, 20), (0, 0), (5, 130)], [(10, 0)]])
def test_padded_batches(pads: list[tuple[int, int]]) -> None:
    call = make_call(200, pads=pads)
    for selection in selections(call):
        assert_equal_to_reference(call, selection)


def test_a_batch_without_padding() -> None:
    call = make_call(150, batch=3)
    for selection in selections(call):
        assert_equal_to_reference(call, selection)


def test_decoding_continues_the_prefill() -> None:
    whole = make_call(200)
    last = replace(
        whole,
        query=whole.query[:, :, -1:],
        query_positions=whole.query_positions[:, -1:],
        allowed=replace(whole.allowed, query_index=whole.allowed.query_index[-1:]),
        phase="decode",
    )
    for selection in (Everything(), Band(4, 20), Tiles(random_tiles(200, 6, 64), 64, 64)):
        a, b = BLOCKED.attend(whole, selection), BLOCKED.attend(last, selection)
        assert difference(a.output[:, :, -1:], b.output) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [111, 1000])
def test_error_is_within_the_budget_of_an_honest_computation(dtype: torch.dtype, length: int) -> None:
    call = make_call(length, dtype=dtype)
    keep = Band(4, 60).rows(call, 0, length)
    mask = keep & call.allowed.rows(0, length)
    truth = exact(call, keep).output
    honest = scaled_dot_product_attention(call.query, call.key, call.value, mask, enable_gqa=True)
    rounding = float(truth.abs().max()) * torch.finfo(dtype).eps
    found = BLOCKED.attend(call, Band(4, 60)).output
    assert difference(found, truth) <= 2 * difference(honest, truth) + rounding


def test_no_cell_of_an_uninitialised_buffer_reaches_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    plain: Callable[..., Tensor] = torch.empty

    def poisoned(*args: object, **kwargs: object) -> Tensor:
        buffer = plain(*args, **kwargs)
        return buffer.fill_(float("nan")) if buffer.is_floating_point() else buffer

    monkeypatch.setattr(torch, "empty", poisoned)
    call = make_call(111)
    keep = torch.rand(1, 6, 111, 111) < 0.1
    keep[..., 5, :] = False
    for selection in (
        Everything(),
        Band(1, 9),
        Bits.of(keep),
        Tiles(torch.zeros(1, 6, 2, 2, dtype=torch.bool), 64, 64),
    ):
        for options in ({}, {"window": 3}):
            odd = replace(call, allowed=replace(call.allowed, **options))  # type: ignore[arg-type]
            found = BLOCKED.attend(odd, selection)
            assert torch.isfinite(found.output).all()
            assert not torch.isnan(found.lse).any()


def test_a_selection_of_nothing_gives_zeros() -> None:
    call = make_call(200)
    found = BLOCKED.attend(call, Bits.of(torch.zeros(1, 1, 200, 200, dtype=torch.bool)))
    assert not found.output.any()
    assert (found.lse == float("-inf")).all()


def test_large_scores_do_not_overflow() -> None:
    call = make_call(150, sharp=300.0)
    for selection in (Everything(), Band(2, 40)):
        expected, found = REFERENCE.attend(call, selection), BLOCKED.attend(call, selection)
        assert difference(found.output, expected.output) < 1e-3
        assert torch.isfinite(found.lse).all()


def test_what_it_cannot_do_raises() -> None:
    with pytest.raises(ValueError, match="float64"):
        BLOCKED.attend(make_call(10, dtype=torch.float64), Everything())
    meta = make_call(10)
    meta = replace(meta, query=meta.query.to("meta"), key=meta.key.to("meta"), value=meta.value.to("meta"))
    with pytest.raises(ValueError, match="CPU"):
        BLOCKED.attend(meta, Everything())


def test_only_touched_tiles_are_computed() -> None:
    call = make_call(128 * 6, heads=3, kv_heads=1)
    kept = random_tiles(128 * 6, 3, 128, 0.3)
    selection = Tiles(kept)
    plan = Blocked().plan(call, selection)
    computed = plan.cells / 128**2
    assert computed == int(kept.tril().sum())
    assert selection.density_computed(call).sum() == pytest.approx(computed / 21)


def test_heads_with_one_mask_share_their_strips() -> None:
    call = make_call(256, heads=9, kv_heads=3)
    plan = Blocked().plan(call, Mixture([(tuple(range(1, 9)), Band(0, 100)), ((0,), Everything())]))
    folds = {tuple(heads) for batch in plan.batches for heads in batch.heads.tolist()}
    assert folds == {(0,), (1, 2), (3, 4, 5), (6, 7, 8)}


def test_another_tile_size_gives_the_same() -> None:
    call = make_call(200)
    for block in (16, 64):
        found = Blocked(block).attend(call, Band(3, 40))
        assert difference(found.output, REFERENCE.attend(call, Band(3, 40)).output) < TOLERANCE


def test_tensors_may_be_views_as_models_hand_them_over() -> None:
    call = make_call(200)
    strided = replace(
        call,
        **{
            name: getattr(call, name).transpose(1, 2).contiguous().transpose(1, 2)
            for name in ("query", "key", "value")
        },
    )
    assert not strided.query.is_contiguous()
    for selection in selections(call):
        expected = REFERENCE.attend(call, selection)
        for one in (REFERENCE, BLOCKED):
            assert difference(one.attend(strided, selection).output, expected.output) < TOLERANCE


def test_positions_need_not_start_at_zero() -> None:
    """A rolling cache of a windowed layer: the oldest key is at position 70."""
    whole = make_call(200, window=60)
    index = whole.allowed.query_index
    rolled = replace(
        whole,
        query=whole.query[:, :, 130:],
        key=whole.key[:, :, 70:],
        value=whole.value[:, :, 70:],
        query_positions=index[None, 130:],
        key_positions=index[None, 70:],
        allowed=replace(whole.allowed, query_index=index[130:], key_index=index[70:]),
    )
    want = Want(frozenset({"entropy", "sink_mass", "previous_mass", "local_mass", "distance"}))
    for selection in (Everything(), Band(4, 20), Tiles(random_tiles(200, 6, 64), 64, 64)):
        expected = REFERENCE.attend(whole, selection, want)
        for one in (REFERENCE, BLOCKED):
            found = one.attend(rolled, selection, want)
            assert difference(found.output, expected.output[:, :, 130:]) < TOLERANCE
            for name, value in expected.statistics.items():
                assert difference(found.statistics[name], value[:, :, 130:]) < 1e-4, name
