"""Strips over gathered keys: equal to the reference on every kind, used where they save, planned without the square."""

from __future__ import annotations

import pytest
import torch

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
        Groups(
            *(
                one.map if name == "map" else one.query_group[:, :1] if name == "q" else one.key_group
                for one in [groups(q_len, k_len, heads, 5, share=0.0)]
                for name in ("q", "k", "map")
            )
        ),
        Spliced(q_len // 2, Band(1, 9), KeyList(keys.index[:, :, q_len // 2 :])),
        Mixture(
            [
                (tuple(range(0, heads, 2)), stripes(k_len, len(range(0, heads, 2)), 64)),
                (
                    tuple(range(1, heads, 2)),
                    Mixture(
                        [
                            ((0,), Everything()),
                            (
                                tuple(range(1, len(range(1, heads, 2)))),
                                keys.of_heads(torch.arange(1, len(range(1, heads, 2)))),
                            ),
                        ]
                    ),
                ),
            ]
        ),
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
