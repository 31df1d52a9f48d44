"""Stored selections and maps come back as the rows they stand for."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import numpy as np
import pytest

from sparselens.storage.mask import keep_rows
from sparselens.storage.pooled import decode, encode


def packed(values: Any) -> dict[str, Any]:
    array = np.asarray(values)
    data = base64.b64encode(zlib.compress(array.tobytes())).decode()
    return {"dtype": str(array.dtype), "shape": list(array.shape), "zlib_base64": data}


def record(kind: str, **fields: Any) -> bytes:
    return json.dumps({"kind": kind, "q_start": 0, "q_len": 12, "k_start": 0, "k_len": 12, **fields}).encode()


def by_hand(n: int, keep: Any) -> Any:
    return np.array([[bool(keep(q, k)) and k <= q for k in range(n)] for q in range(n)])


def test_everything_and_band() -> None:
    assert (keep_rows(record("everything"), 0, 12, 12) == by_hand(12, lambda q, k: True)).all()
    band = by_hand(12, lambda q, k: k < 2 or q - k < 3)
    assert (keep_rows(record("band", sink=2, window=3), 0, 12, 12) == band).all()
    assert (keep_rows(record("band", sink=2, window=3), 5, 9, 7) == band[5:9, :7]).all()
    free = keep_rows(record("band", sink=2, window=3), 0, 4, 8, causal=False)
    assert free[0].tolist() == [True] * 8


def test_tiles() -> None:
    blocks = np.random.default_rng(0).random((4, 3)) < 0.5
    data = record("tiles", block_q=3, block_k=5, rows=4, columns=3, map=packed(np.packbits(blocks, axis=-1)))
    assert (keep_rows(data, 0, 12, 12) == by_hand(12, lambda q, k: blocks[q // 3, k // 5])).all()
    assert not keep_rows(data, 12, 14, 12).any()


@pytest.mark.parametrize("tile", [None, 1, 4])
def test_stripes(tile: int | None) -> None:
    columns, distances = [0, 5], [0, 7]
    data = record(
        "stripes",
        columns=packed(np.array(columns, np.int32)),
        distances=packed(np.array(distances, np.int32)),
        tile=tile,
    )
    t = tile or 1
    expected = by_hand(
        12, lambda q, k: k in columns or any(q // t * t - k + i in distances for i in range(t))
    )
    assert (keep_rows(data, 0, 12, 12) == expected).all()
    assert (keep_rows(data, 6, 8, 12) == expected[6:8]).all()


def test_key_lists_and_bits_know_where_they_start() -> None:
    index = np.array([[4, 1, -1], [2, -1, -1], [6, 5, 0]], np.int32)
    data = record("keys", index=packed(index)).replace(
        b'"q_start": 0, "q_len": 12', b'"q_start": 4, "q_len": 3'
    )
    rows = keep_rows(data, 4, 7, 12)
    assert [np.flatnonzero(row).tolist() for row in rows] == [[1, 4], [2], [0, 5, 6]]
    assert np.flatnonzero(keep_rows(data, 6, 7, 3)[0]).tolist() == [0]
    with pytest.raises(ValueError, match="the selection has the rows 4…6, not 7"):
        keep_rows(data, 5, 8, 12)
    matrix = np.random.default_rng(1).random((12, 12)) < 0.5
    bits = record("bits", bits=packed(np.packbits(matrix, axis=-1)))
    assert (keep_rows(bits, 0, 12, 12) == (matrix & np.tri(12, dtype=bool))).all()
    assert (keep_rows(bits, 3, 5, 20)[:, :12] == (matrix & np.tri(12, dtype=bool))[3:5]).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "a selection is JSON"),
        (b"[]", "unknown kind of selection None; there are everything, band"),
        (record("spiral"), "unknown kind of selection 'spiral'"),
        (record("band", sink=2), "broken selection of kind band"),
        (record("bits", bits={"dtype": "uint8", "shape": [1], "zlib_base64": "!"}), "broken array"),
    ],
)
def test_a_broken_selection_is_said(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        keep_rows(data, 0, 2, 2)


def test_pooled_maps_keep_three_digits() -> None:
    maps = np.random.default_rng(2).random((3, 8, 8)).astype(np.float32)
    blobs = encode(maps)
    assert [len(blob) for blob in blobs] == [128] * 3
    assert np.allclose(decode(blobs[1], 8), maps[1], rtol=1e-3)
    with pytest.raises(ValueError, match="are not a map of 9 × 9"):
        decode(blobs[0], 9)
    with pytest.raises(ValueError, match=r"maps are \[n, size, size\]"):
        encode(maps[0])
