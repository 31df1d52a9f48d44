"""What the Triton kernel computes, under Triton's interpreter, against float64.

Not collected by itself: `test_triton.py` runs it in a process in which TRITON_INTERPRET=1 is set before Triton
is imported. By hand: `TRITON_INTERPRET=1 python -m pytest tests/kernels/interpreted_triton.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparselens.kernels import triton_launch, triton_mask, triton_schedule, triton_second_pass
from sparselens.kernels.selection import Band, Bits, Everything, Mixture, Stripes, Tiles, Union
from sparselens.kernels.statistics import Want
from sparselens.kernels.triton_form import pack_words
from sparselens.kernels.triton_formula import tile_for
from sparselens.kernels.triton_kernel import Triton

from .conftest import make_call, random_tiles
from .triton_cases import CALLS, KINDS, LISTS, TILES, all_statistics, check, selections


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The interpreter's numpy may overflow in cells that are masked afterwards, as a GPU does silently."""
    with np.errstate(all="ignore"):
        yield


@pytest.mark.parametrize("kind", KINDS)
def test_every_selection_under_some_call_equals_float64(kind: str) -> None:
    """Each kind meets each call once in three: which, is drawn from its name."""
    drawn = random.Random(kind).sample(range(len(CALLS)), 2)
    for place in drawn:
        call = make_call(**CALLS[place])
        check(TILES, call, selections(call)[kind], Want())


@pytest.mark.parametrize(
    ("kind", "place"),
    [("everything", 2), ("band", 0), ("tiles", 5), ("stripes", 3), ("stripes of tiles", 2), ("bits", 1),
     ("mixture of kinds", 3), ("union", 4)],
)  # fmt: skip
def test_every_statistic_equals_float64(kind: str, place: int) -> None:
    call = make_call(**CALLS[place])
    check(TILES, call, selections(call)[kind], all_statistics(call))


@pytest.mark.parametrize("kind", KINDS)
def test_key_lists_equal_float64(kind: str) -> None:
    place = random.Random(kind).randrange(len(CALLS))
    for options in ({**CALLS[place], "q_len": 1}, {**CALLS[place], "q_len": 4}):
        call = make_call(**options)
        check(LISTS, call, selections(call)[kind], all_statistics(call))


def test_a_further_mask_of_the_model_is_kept_to() -> None:
    def extra(batch: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (batch >= 0) & ((query // 10 != 3) | (key % 2 == 0))

    call = make_call(37, 2, 1, extra=extra)
    for kind in ("everything", "stripes"):
        check(
            TILES,
            call,
            selections(call)[kind],
            Want(frozenset({"gathered"}), gather=torch.zeros(1, 2, 37, 1)),
        )
    check(LISTS, make_call(37, 2, 1, q_len=2, extra=extra), Everything(), Want())


def test_steps_may_be_smaller_than_tiles() -> None:
    call = make_call(70, 1, 1)
    small = Triton(tile=64, block_m=32, block_n=32)
    check(small, call, Bits.of(torch.rand(1, 1, 70, 70) < 0.3), all_statistics(call))


def test_one_query_and_one_key() -> None:
    call = make_call(1, 2, 1)
    for kernel in (TILES, LISTS):
        check(kernel, call, Everything(), all_statistics(call))


def test_positions_need_not_start_at_zero() -> None:
    """A rolling cache of a windowed layer: the oldest key is at position 20."""
    whole = make_call(60, 2, 1, window=30)
    index = whole.allowed.query_index
    rolled = replace(
        whole,
        query=whole.query[:, :, 45:],
        key=whole.key[:, :, 20:],
        value=whole.value[:, :, 20:],
        query_positions=index[None, 45:],
        key_positions=index[None, 20:],
        allowed=replace(whole.allowed, query_index=index[45:], key_index=index[20:]),
    )
    check(TILES, rolled, selections(whole)["stripes"], all_statistics(rolled, cells=1))
    check(TILES, rolled, selections(whole)["larger tiles"], Want())


def test_holes_in_the_padding_do_not_shift_stripes() -> None:
    call = make_call(37, 2, 1)
    valid = torch.ones(1, 37, dtype=torch.bool)
    valid[0, 11:14] = False
    positions = (valid.long().cumsum(-1) - 1).where(valid, -1)
    holed = replace(
        call,
        query_positions=positions,
        key_positions=positions,
        allowed=replace(call.allowed, key_valid=valid, query_valid=valid),
    )
    check(TILES, holed, selections(call)["stripes"], Want())


def test_large_scores_do_not_overflow() -> None:
    call = make_call(37, 2, 1, sharp=300.0)
    check(TILES, call, Band(2, 9), Want(frozenset({"entropy", "top"})))


def test_tensors_may_be_views_as_models_hand_them_over() -> None:
    call = make_call(37, 2, 1)
    turned = {
        name: getattr(call, name).transpose(1, 2).contiguous().transpose(1, 2)
        for name in ("query", "key", "value")
    }
    check(TILES, replace(call, **turned), Band(2, 9), Want())
    check(LISTS, replace(make_call(37, 2, 1, q_len=1), key=turned["key"]), Band(2, 9), Want())


def test_sums_are_the_same_from_run_to_run() -> None:
    call = make_call(37, 2, 1)
    selection, want = selections(call)["stripes"], Want(frozenset({"received", "pooled"}), cells=3)
    first, second = (TILES.attend(call, selection, want) for _ in range(2))
    assert torch.equal(first.output, second.output)
    assert all(torch.equal(first.statistics[name], second.statistics[name]) for name in first.statistics)


def test_columns_outside_the_diagonals_are_keys_and_not_tiles() -> None:
    call = make_call(64, 1, 1)
    selection = Stripes(torch.tensor([[[0, 5, 40]]]), torch.tensor([[[0]]]))
    work = triton_schedule.schedule(call, selection, 16)
    assert int(work.touched.sum()) == 4  # the diagonal
    assert work.lists.column_start is not None
    assert work.lists.column_start.diff().tolist() == [0, 2, 2, 3]


def test_finer_maps_get_finer_tiles() -> None:
    one = torch.ones(1, 1, 2, 2, dtype=torch.bool)
    fine, coarse = Tiles(one, 64, 64), Tiles(one, 128, 128)
    assert tile_for(Mixture([((0,), coarse), ((1,), fine)])) == tile_for(Union((coarse, fine))) == 64
    assert tile_for(coarse) == tile_for(Band(4, 20)) == 128
    check(Triton(few=0), make_call(80, 1, 1), Tiles(random_tiles(80, 1, 64), 64, 64), Want())


def test_words_hold_the_first_key_in_the_lowest_bit() -> None:
    mask = torch.rand(3, 70) < 0.5
    words = pack_words(mask)
    assert words.shape == (3, 2)
    bits = [[bool(words[row, column // 64] >> (column % 64) & 1) for column in range(70)] for row in range(3)]
    assert torch.equal(torch.tensor(bits), mask)


def no_causal_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(rules: Any, i_b: Any, o_m: Any, o_n: Any, m_n: Any, q_len: Any, k_len: Any) -> Any:
        return m_n & (o_m < q_len)

    monkeypatch.setattr(triton_mask, "allowed", wrong)


def bits_of_another_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    true = triton_launch.schedule

    def wrong(*arguments: Any) -> Any:
        work = true(*arguments)
        return replace(work, rules=work.rules._replace(bits=work.rules.bits.roll(1, 0)))

    monkeypatch.setattr(triton_launch, "schedule", wrong)


def a_dropped_column(monkeypatch: pytest.MonkeyPatch) -> None:
    true = triton_launch.schedule

    def wrong(*arguments: Any) -> Any:
        work = true(*arguments)
        return replace(work, lists=work.lists._replace(column=work.lists.column.roll(1)))

    monkeypatch.setattr(triton_launch, "schedule", wrong)


def unmasked_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_second_pass, "seen", lambda *arguments: arguments[5])


@pytest.mark.parametrize(
    ("plant", "kind", "names"),
    [
        (no_causal_mask, "everything", set()),
        (bits_of_another_tile, "bits", set()),
        (a_dropped_column, "stripes", set()),
        (unmasked_sums, "band", {"received"}),
    ],
)
def test_a_wrong_kernel_is_caught(
    plant: Callable[[pytest.MonkeyPatch], None], kind: str, names: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = make_call(40, 2, 1)
    selection = selections(call)[kind]
    check(TILES, call, selection, Want(frozenset(names)))
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check(TILES, call, selection, Want(frozenset(names)))
