"""Strips over gathered keys: equal to the reference on every kind, used where they save, planned without the square."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sparselens.kernels.blocked import Blocked
from sparselens.kernels.call import AttentionCall
from sparselens.kernels.kernel import kernel
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
)
from sparselens.kernels.statistics import NAMES, Want
from sparselens.kernels.tile_cover import PADDING

from .conftest import TOLERANCE, difference, make_call, random_tiles
from .test_statistics import assert_statistics_agree

REFERENCE = kernel("reference")


def stripes(length: int, heads: int, tile: int | None, columns: int = 5, distances: int = 4) -> Stripes:
    near = torch.arange(3).expand(1, heads, 3)
    far = torch.randint(0, length, (1, heads, distances))
    return Stripes(torch.randint(-1, length, (1, heads, columns)), torch.cat([near, far], -1), tile)


def groups(q_len: int, k_len: int, heads: int, count: int, share: float = 0.3) -> Groups:
    kept = (torch.rand(1, heads, count, count) < share) | torch.eye(count, dtype=torch.bool)
    return Groups(
        torch.randint(-1, count, (1, heads, q_len)), torch.randint(-1, count, (1, heads, k_len)), kept
    )


def scattered(call: AttentionCall) -> list[Selection]:
    """Every kind whose keys lie apart, shared by all heads and not."""
    heads, q_len, k_len = call.heads, call.q_len, call.k_len
    keys = KeyList(torch.randint(-1, k_len, (1, heads, q_len, 4), dtype=torch.int32))
    band_and_columns = Union(
        (Band(2, 20), Stripes(torch.randint(0, k_len, (1, heads, 6)), torch.full((1, 1, 1), -1)))
    )
    own = groups(q_len, k_len, heads, 5, share=0.0)
    one_query_group = Groups(own.query_group[:, :1], own.key_group, own.map)
    even, odd = tuple(range(0, heads, 2)), tuple(range(1, heads, 2))
    others = Mixture(
        [((0,), Everything()), (tuple(range(1, len(odd))), keys.of_heads(torch.arange(1, len(odd))))]
    )
    return [
        stripes(k_len, heads, 64),
        stripes(k_len, 1, 64),
        stripes(k_len, heads, 16),
        stripes(k_len, heads, None),
        stripes(k_len, heads, 48),
        stripes(k_len, heads, 64, columns=k_len),
        Tiles(random_tiles(k_len, heads, 32, 0.2), 32, 32),
        Tiles(random_tiles(k_len, 1, 16, 0.2), 16, 16),
        Tiles(random_tiles(k_len, heads, 40, 0.2), 40, 40),
        keys,
        KeyList(torch.randint(-1, k_len, (1, 1, q_len, 40), dtype=torch.int32)),
        Bits.of(torch.rand(1, heads, q_len, k_len) < 0.02),
        band_and_columns,
        Union((stripes(k_len, heads, 64), Tiles(random_tiles(k_len, 1, 32, 0.2), 32, 32), Band(0, 9))),
        Union((stripes(k_len, 1, 64), keys)),
        groups(q_len, k_len, heads, 3),
        groups(q_len, k_len, 1, 5),
        groups(q_len, k_len, heads, 5, share=0.0),
        groups(q_len, k_len, heads, 60),
        one_query_group,
        Spliced(q_len // 2, Band(1, 9), KeyList(keys.index[:, :, q_len // 2 :])),
        Mixture([(even, stripes(k_len, len(even), 64)), (odd, others)]),
    ]


KINDS = len(scattered(make_call(20)))


@pytest.mark.parametrize("kind", range(KINDS))
def test_statistics_of_gathered_keys_equal_the_reference(kind: int) -> None:
    for length in (1, 37, 200):
        call = make_call(length, heads=6, kv_heads=2)
        want = Want(NAMES, gather=torch.randint(-1, length, (1, 6, length, 3)), cells=11)
        selection = scattered(call)[kind]
        assert_statistics_agree(call, selection, want)
        expected, found = REFERENCE.attend(call, selection), Blocked().attend(call, selection)
        assert difference(found.output, expected.output) < TOLERANCE
        assert difference(found.lse, expected.lse) < TOLERANCE


@pytest.mark.parametrize(
    "options",
    [{"window": 50}, {"sinks": True, "softcap": 5.0}, {"q_len": 1}, {"q_len": 70}, {"heads": 5, "kv_heads": 1},
     {"extra": lambda batch, query, key: (batch >= 0) & ((query // 10 != 3) | (key % 2 == 0))}],
)  # fmt: skip
def test_gathered_keys_under_every_option(options: dict[str, object]) -> None:
    call = make_call(190, **options)  # type: ignore[arg-type]
    for selection in scattered(call):
        expected, found = REFERENCE.attend(call, selection), Blocked().attend(call, selection)
        assert difference(found.output, expected.output) < TOLERANCE, selection.kind
        assert difference(found.lse, expected.lse) < TOLERANCE, selection.kind


@pytest.mark.parametrize("kind", range(KINDS))
def test_strips_of_every_height_equal_the_reference(kind: int) -> None:
    call = make_call(400, heads=4, kv_heads=2, head_dim=8)
    selection = scattered(call)[kind]
    expected, found = REFERENCE.attend(call, selection), Blocked().attend(call, selection)
    assert difference(found.output, expected.output) < TOLERANCE
    assert difference(found.lse, expected.lse) < TOLERANCE


def kept_pairs(call: AttentionCall, selection: Selection) -> float:
    return float(selection.counts(call).sum(-1).expand(call.batch, call.heads).sum())


def computed(call: AttentionCall, selection: Selection) -> float:
    """Computed cells ÷ kept and allowed cells."""
    return Blocked().plan(call, selection).cells / kept_pairs(call, selection)


def least(call: AttentionCall, selection: Selection, wasted: int) -> float:
    """Cells that gathered strips need: what is kept, `wasted` cells a row for what the rows of a strip do not share,
    keys up to the next eight."""
    return kept_pairs(call, selection) + call.heads * call.q_len * (wasted + 8)


def assert_gathered(call: AttentionCall, selection: Selection, wasted: int) -> None:
    """Each batch may fill its shorter strips up."""
    plan = Blocked().plan(call, selection)
    assert plan.cells < least(call, selection, wasted) + PADDING * len(plan.batches)


def long_call(length: int = 2048, heads: int = 2) -> AttentionCall:
    return make_call(length, heads=heads, kv_heads=1, head_dim=1)


@pytest.mark.parametrize("shared", [True, False])
def test_stripes_as_a_kernel_loads_them_waste_only_half_of_the_diagonal(shared: bool) -> None:
    call = long_call()
    selection = stripes(2048, 1 if shared else 2, 64, columns=32, distances=8)
    assert_gathered(call, selection, 32)
    in_tiles = float(selection.density_computed(call).sum()) * 16 * 17 / 2 * 128**2
    assert 2 * least(call, selection, 32) < in_tiles


def test_small_tiles_waste_only_half_of_the_diagonal() -> None:
    call = long_call()
    for size in (32, 64):
        selection = Tiles(random_tiles(2048, 2, size, 0.1), size, size)
        assert_gathered(call, selection, size // 2)


def test_columns_alone_are_gathered() -> None:
    call = long_call()
    selection = Stripes(torch.arange(5, 2048, 64)[None, None], torch.full((1, 1, 1), -1))
    assert_gathered(call, selection, 1)


def test_lists_with_common_keys_are_gathered() -> None:
    """Rows that keep the same 40 keys and one of their own: 32 of them touch at most 31 that a row does not keep."""
    call = long_call()
    common = torch.randint(0, 2048, (1, 2, 1, 40)).expand(-1, -1, 2048, -1)
    own = torch.randint(0, 2048, (1, 2, 2048, 1))
    selection = KeyList(torch.cat([common, own], -1).int())
    assert_gathered(call, selection, 31)


def test_queries_of_a_group_are_put_side_by_side() -> None:
    """16 groups of some 128 queries, whose keys are theirs: in place, 16 queries would touch every key."""
    call = long_call()
    own = Groups(
        *(torch.randint(0, 16, (1, 2, 2048)) for _ in range(2)), torch.eye(16, dtype=torch.bool)[None, None]
    )
    assert computed(call, own) < 2.5
    in_place = Bits.of(own.rows(call, 0, 2048))
    assert computed(call, in_place) > 8


def test_what_keeps_nearly_everything_is_not_computed_twice() -> None:
    call = long_call()
    half = Bits.of(torch.rand(1, 2, 2048, 2048) < 0.5)
    plan = Blocked().plan(call, half)
    assert plan.cells < 1.05 * 2 * 2048 * (2048 + 128) / 2
    assert all(batch.copied == 0 for batch in plan.batches[2:])


class Largest(TorchDispatchMode):
    """Notes the bytes of the largest tensor that is made."""

    nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (list, tuple)) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor.dtype in {torch.bool, torch.uint8}:
                self.nbytes = max(self.nbytes, tensor.untyped_storage().nbytes())
        return made


@pytest.mark.parametrize(
    "name", ["stripes", "exact stripes", "small tiles", "band and columns", "stripes and tiles", "mixture"]
)
def test_formulas_are_planned_without_the_square(name: str) -> None:
    length = 4096
    call = long_call(length)
    columns = Stripes(torch.randint(0, length, (1, 2, 8)), torch.full((1, 1, 1), -1))
    selection: Selection = {
        "stripes": stripes(length, 2, 64),
        "exact stripes": stripes(length, 2, None),
        "small tiles": Tiles(random_tiles(length, 2, 64, 0.1), 64, 64),
        "band and columns": Union((Band(4, 100), columns)),
        "stripes and tiles": Union((stripes(length, 2, 64), Tiles(random_tiles(length, 1, 128, 0.1)))),
        "mixture": Mixture([((0,), stripes(length, 1, 64)), ((1,), Everything())]),
    }[name]
    with Largest() as largest:
        Blocked().plan(call, selection)
    assert largest.nbytes < length * length / 7


def test_gathered_keys_of_padded_sequences() -> None:
    call = make_call(130, pads=[(0, 0), (17, 4)])
    for selection in scattered(call):
        expected, found = REFERENCE.attend(call, selection), Blocked().attend(call, selection)
        assert difference(found.output, expected.output) < TOLERANCE, selection.kind
        assert difference(found.lse, expected.lse) < TOLERANCE, selection.kind
