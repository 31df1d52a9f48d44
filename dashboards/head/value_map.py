"""Maps by value: cells are mean shares of p · ‖W_O v‖, whole from the kept q and k, else of the stored keys.

Pooled maps of attention cannot be weighed: the keys of one cell differ too much in ‖W_O v‖.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sparselens.dashboards.head.edge import edges
from sparselens.dashboards.head.pattern import EXACT_CELLS, Cells, exact_rows, values_in
from sparselens.dashboards.head.weigh import Floats, norms, weighed
from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.selection import Selection, Window
from sparselens.dashboards.verdict import number

SIDE_CELLS = 64
WHOLE = 2048
"""Tokens up to which a whole map is computed from q and k."""
LEFT_OUT = """
SELECT avg(unstored_mass) AS mass FROM row_stats
WHERE run_id = $run AND prompt_id = $prompt AND pattern = 'executed' AND layer = $layer AND head = $head
  AND q_pos >= $start AND q_pos < $stop
"""


def value_cells(source: Source, selection: Selection, length: int) -> dict[str, Cells]:
    """The cells of A and B by value in the selected window; both whole, or both of their stored keys.

    Raises:
        SourceError: ‖W_O v‖ is not stored, or neither q and k nor edges.

    """
    runs = {side: getattr(selection, side) for side in ("a", "b") if getattr(selection, side)}
    if not length:
        return {}
    queries = (selection.qs or Window(0, length)).clip(length)
    keys = (selection.ks or Window(0, length)).clip(length)
    pool = 1
    if max(len(queries), len(keys)) > EXACT_CELLS:
        pool = -(-max(len(queries), len(keys)) // SIDE_CELLS)
    window = (_aligned(queries, pool), _aligned(keys, pool), pool)
    try:
        if length > WHOLE and pool > 1:
            raise SourceError(f"Zoom to {EXACT_CELLS} × {EXACT_CELLS} or less for whole rows.")
        return {side: _whole(source, run, selection, window, length) for side, run in runs.items()}
    except SourceError as reason:
        left = [
            f"{side.upper()} leaves out {number(_left_out(source, run, selection, queries))} of its mass"
            for side, run in runs.items()
        ]
        note = f"Of the stored keys alone: {', '.join(left)}. {reason}"
        norm = {side: norms(source, run, selection, length) for side, run in runs.items()}
        frame = edges(source, selection)
        return {side: _stored(frame, side, norm[side], window, note) for side in runs}


def _left_out(source: Source, run: str, selection: Selection, queries: Window) -> float | None:
    """The mean mass of the rows on keys that are not stored."""
    at = {name: getattr(selection, name) for name in ("prompt", "layer", "head")}
    found = source.first(LEFT_OUT, run=run, start=queries.start, stop=queries.stop, **at)
    return found.get("mass")


def value_words(each: Cells) -> str:
    """How the cells came about, in words."""
    if each.pool == 1:
        words = "By value: a row's shares of p · ‖W_O v‖ (see Text)."
    else:
        words = (
            f"By value, {each.pool} × {each.pool} tokens a cell: mean over queries of the summed shares of "
            "p · ‖W_O v‖ (see Text)."
        )
    if each.note:
        return f"{words} {each.note}"
    return f"{words} Whole rows, from the kept q and k (float16) under the recorded selection."


def _aligned(window: Window, pool: int) -> Window:
    return Window(window.start // pool * pool, -(-window.stop // pool) * pool)


def _whole(
    source: Source, run: str, selection: Selection, window: tuple[Window, Window, int], length: int
) -> Cells:
    queries, keys, pool = window
    norm = norms(source, run, selection, length)
    blocks = []
    for start in range(queries.start, min(queries.stop, length), EXACT_CELLS):
        block = Window(start, min(start + EXACT_CELLS, queries.stop, length))
        shares = weighed(exact_rows(source, run, selection, block), norm)
        blocks.append(values_in(shares, block, keys, length))
    return Cells(_pooled(np.concatenate(blocks), window, length), queries, keys, pool, pool == 1)


def _stored(frame: Any, side: str, norm: Floats, window: tuple[Window, Window, int], note: str) -> Cells:
    """Shares among the keys that are stored of each row; SourceError where no row has any."""
    queries, keys, pool = window
    length = len(norm)
    frame = frame[frame[side].notna() & (frame["q"] >= queries.start) & (frame["q"] < queries.stop)]
    if frame.empty:
        raise SourceError(f"No edges of these rows are stored. {note}")
    query, key = frame["q"].to_numpy(), frame["k"].to_numpy()
    sizes = frame[side].to_numpy(dtype=np.float64) * norm[key]
    totals = np.bincount(query, sizes, minlength=length)
    shares = sizes / np.where(totals > 0, totals, 1.0)[query]
    inside = (key >= keys.start) & (key < keys.stop)
    shape = (-(-len(queries) // pool), -(-len(keys) // pool))
    cell = (query[inside] - queries.start) // pool * shape[1] + (key[inside] - keys.start) // pool
    sums = np.bincount(cell, shares[inside], minlength=shape[0] * shape[1]).reshape(shape)
    values = sums / _rows(window, length, shape[0])[:, None]
    first: Any = np.arange(shape[1]) * pool + keys.start
    last: Any = (np.arange(shape[0]) + 1) * pool + queries.start
    values[first[None, :] >= last[:, None]] = np.nan
    return Cells(values, queries, keys, pool, False, note)


def _rows(window: tuple[Window, Window, int], length: int, cells: int) -> Floats:
    """How many queries each row of cells is over; the last may have fewer."""
    queries, _, pool = window
    there: Any = min(queries.stop, length) - queries.start - np.arange(cells) * pool
    return np.asarray(np.clip(there, 1, pool), dtype=np.float64)


def _pooled(values: Floats, window: tuple[Window, Window, int], length: int) -> Floats:
    """Cells `[rows, columns]` of rows that are there, means over queries of sums over keys; NaN where none is seen."""
    queries, keys, pool = window
    if pool == 1:
        return values
    wide = np.full((-(-len(queries) // pool) * pool, -(-len(keys) // pool) * pool), np.nan)
    wide[: values.shape[0], : values.shape[1]] = values
    blocks = wide.reshape(wide.shape[0] // pool, pool, wide.shape[1] // pool, pool)
    sums = np.nansum(blocks, axis=(1, 3)) / _rows(window, length, blocks.shape[0])[:, None]
    return np.asarray(np.where(np.isnan(blocks).all(axis=(1, 3)), np.nan, sums))
