"""Pooled attention maps as bytes: `pooled_maps.data`, size × size little-endian float16, row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def encode(maps: Any) -> list[bytes]:
    """A blob for each of `[n, size, size]` masses, queries down and keys across; else ValueError.

    Half precision keeps three digits; a cell below 6e-8 becomes 0. Parquet compresses the empty triangle.
    """
    cells = np.asarray(maps)
    if cells.ndim != 3 or cells.shape[1] != cells.shape[2]:
        raise ValueError(f"maps are [n, size, size], not {cells.shape}")
    half = np.ascontiguousarray(cells, dtype="<f2").reshape(len(cells), -1)
    return [row.tobytes() for row in half]


def decode(data: bytes, size: int) -> NDArray[np.float32]:
    """`[size, size]` masses; ValueError if the bytes are not that many cells."""
    if len(data) != 2 * size * size:
        raise ValueError(f"{len(data)} bytes are not a map of {size} × {size} float16 cells")
    return np.frombuffer(data, "<f2").reshape(size, size).astype(np.float32)
