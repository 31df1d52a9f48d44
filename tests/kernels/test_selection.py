"""Selections: masks, tiles, densities and records tell the same story for every shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.selection import (
    Band,
    Bits,
    Everything,
    Groups,
    KeyList,
    Mixture,
    Selection,
    Spliced,
    Stripes,
    Tiles,
    Union,
    pack,
    unpack,
)
from sparselens.storage.mask import keep_rows

from .conftest import make_call, random_tiles

LENGTH = 150


def every_shape(heads: int = 6, length: int = LENGTH) -> list[Selection]:
    return [
        Everything(),
        Band(4, 20),
        Band(0, 1),
        Tiles(random_tiles(length, heads, 32), 32, 32),
        Tiles(random_tiles(length, 1, 50), 50, 50),
        Stripes(torch.randint(-1, length, (1, heads, 5)), torch.randint(-1, length, (1, heads, 6))),
        Stripes(
            torch.randint(0, length, (1, heads, 2)), torch.randint(0, length - 20, (1, heads, 3)), tile=16
        ),
        KeyList(torch.randint(-1, length, (1, heads, length, 4), dtype=torch.int32)),
        Bits.of(torch.rand(1, heads, length, length) < 0.2),
        Groups(
            torch.randint(-1, 4, (1, heads, length)),
            torch.randint(-1, 7, (1, 1, length)),
            torch.rand(1, heads, 4, 7) < 0.4,
        ),
        Union((Band(2, 9), Tiles(random_tiles(length, heads, 32), 32, 32))),
        Union((Band(0, 5), Band(3, 1))),
        Spliced(length - 30, Band(2, 40), Bits.of(torch.rand(1, heads, 30, length) < 0.3)),
        Mixture([((0, 3, 5), Band(2, 9)), ((1, 2, 4), Bits.of(torch.rand(1, 3, length, length) < 0.5))]),
    ]


def kept(selection: Selection, call: AttentionCall) -> Tensor:
    mask = selection.kept(call, 0, call.q_len)
    return mask.expand(call.batch, call.heads, -1, -1)


@pytest.mark.parametrize("options", [{}, {"window": 40}, {"q_len": 50}])
def test_tiles_are_any_and_all_of_the_mask(options: dict[str, int]) -> None:
    call = make_call(LENGTH, **options)  # type: ignore[arg-type]
    for selection in every_shape():
        if call.q_len != LENGTH and isinstance(selection, (KeyList, Bits, Mixture, Groups, Spliced)):
            continue
        mask, tiles = kept(selection, call), selection.tiles(call, 32)
        for i in range(tiles.some.shape[-2]):
            for j in range(tiles.some.shape[-1]):
                cells = mask[..., i * 32 : (i + 1) * 32, j * 32 : (j + 1) * 32].flatten(2)
                assert torch.equal(tiles.some[..., i, j].expand(1, 6), cells.any(-1)), selection.kind
                assert torch.equal(tiles.full[..., i, j].expand(1, 6), cells.all(-1)), selection.kind


@pytest.mark.parametrize("options", [{}, {"window": 40}, {"pads": [(0, 20), (7, 0)]}])
def test_density_counts_kept_pairs(options: dict[str, object]) -> None:
    call = make_call(LENGTH, **options)  # type: ignore[arg-type]
    allowed = call.allowed.rows(0, LENGTH).expand(call.batch, -1, -1, -1).sum((-1, -2))
    for selection in every_shape():
        expected = kept(selection, call).sum((-1, -2)) / allowed
        assert torch.allclose(selection.density(call), expected.double(), rtol=1e-6), selection.kind
        assert bool((selection.density_computed(call, 32) <= 1).all())


def test_dense_computes_everything() -> None:
    call = make_call(LENGTH)
    assert torch.equal(Everything().density(call), torch.ones(1, 6, dtype=torch.float64))
    assert torch.equal(Everything().density_computed(call), torch.ones(1, 6, dtype=torch.float64))


def test_computed_density_is_not_below_the_density_of_the_mask() -> None:
    call = make_call(128)
    for selection in every_shape(length=128):
        assert bool(
            (
                selection.tiles(call, 32).some.sum((-1, -2)) * 32 * 32 >= kept(selection, call).sum((-1, -2))
            ).all()
        )


def test_a_sequence_of_a_padded_batch_is_the_selection_without_padding() -> None:
    padded = make_call(60, pads=[(0, 10), (15, 0)])
    for selection in every_shape(length=60):
        for row, queries, keys, one in padded.sequences():
            whole = kept(selection, padded)[row][:, queries][:, :, keys]
            alone = kept(selection.sequence(row, queries, keys), one)[0]
            assert torch.equal(whole, alone), selection.kind


def test_heads_can_be_taken_apart_and_grouped() -> None:
    call = make_call(LENGTH)
    for selection in every_shape():
        mask = kept(selection, call)
        chosen = torch.tensor([4, 0])
        picked = selection.of_heads(chosen).rows(make_call(LENGTH, heads=2, kv_heads=2), 0, LENGTH)
        assert torch.equal(picked.expand(1, 2, -1, -1) & call.allowed.rows(0, LENGTH), mask[:, chosen])
        seen: list[int] = []
        for heads, shared in selection.head_groups(6):
            one = shared.rows(make_call(LENGTH, heads=1, kv_heads=1), 0, LENGTH) & call.allowed.rows(
                0, LENGTH
            )
            assert torch.equal(one.expand(1, len(heads), -1, -1), mask[:, list(heads)]), selection.kind
            seen += heads
        assert sorted(seen) == list(range(6))


def test_records_decode_to_the_mask_without_torch() -> None:
    call = make_call(LENGTH)
    for selection in every_shape():
        records = selection.encode(call)
        assert len(records) == 6
        for head, (kind, data) in enumerate(records):
            decoded = keep_rows(data, 0, LENGTH, LENGTH)
            assert np.array_equal(decoded, kept(selection, call)[0, head].numpy()), kind


def test_records_of_a_padded_sequence_are_in_its_own_positions() -> None:
    call = make_call(60, pads=[(0, 10), (15, 0)])
    for selection in every_shape(length=60):
        mask = kept(selection, call)
        for row, (start, stop) in enumerate([(0, 50), (15, 60)]):
            for head, (kind, data) in enumerate(selection.encode(call, row)):
                n = stop - start
                expected = mask[row, head, start:stop, start:stop].numpy()
                assert np.array_equal(keep_rows(data, 0, n, n), expected), kind


def test_a_tile_reaches_distances_that_no_row_of_it_has() -> None:
    call = make_call(50, heads=1, kv_heads=1)
    selection = Stripes(torch.tensor([[[-1]]]), torch.tensor([[[52]]]), tile=16)
    assert kept(selection, call)[0, 0, 49, :12].all()  # rows 48 … 63 load keys -4 … 11 for it
    decoded = keep_rows(selection.encode(call)[0][1], 0, 50, 50)
    assert np.array_equal(decoded, kept(selection, call)[0, 0].numpy())


def test_static_selections_fit_any_length() -> None:
    for selection in (Everything(), Band(4, 9)):
        assert kept(selection, make_call(20)).shape == (1, 6, 20, 20)
        assert kept(selection, make_call(33, q_len=1)).shape == (1, 6, 1, 33)


@settings(max_examples=30, deadline=None)
@given(sink=st.integers(0, 40), window=st.integers(1, 60), length=st.integers(1, 50))
def test_a_band_is_its_formula(sink: int, window: int, length: int) -> None:
    call = make_call(length, heads=1, kv_heads=1)
    mask = kept(Band(sink, window), call)[0, 0]
    for q in range(length):
        for k in range(length):
            assert bool(mask[q, k]) == (k <= q and (k < sink or q - k < window))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_packing_round_trips(cells: list[bool]) -> None:
    mask = torch.tensor(cells)
    assert torch.equal(unpack(pack(mask), len(cells)), mask)
    assert np.array_equal(pack(mask).numpy(), np.packbits(mask.numpy()))


@settings(max_examples=30, deadline=None)
@given(tile=st.sampled_from([1, 4, 16]), distance=st.integers(0, 40), column=st.integers(0, 40))
def test_stripes_are_their_formula(tile: int, distance: int, column: int) -> None:
    call = make_call(41, heads=1, kv_heads=1)
    mask = kept(Stripes(torch.tensor([[[column]]]), torch.tensor([[[distance]]]), tile), call)[0, 0]
    for q in range(41):
        first = q // tile * tile - distance
        for k in range(q + 1):
            assert bool(mask[q, k]) == (k == column or first <= k < first + tile)
