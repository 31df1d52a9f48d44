"""Attention cells of one head for a window of queries and keys, from what the trace holds.

Two sources, never mixed in one picture without saying so: `pooled_maps` (stored for every head) and, where
`--keep qk` stored the rotated q and k, the exact softmax under the run's recorded selection. An exact map is
only shown when its rows agree with the stored log-sum-exp; scores that were scaled or masked in a way the
trace does not tell would disagree.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.selection import Selection, Window
from sparselens.storage import mask, pooled

Floats: TypeAlias = NDArray[np.float64]

EXACT_CELLS = 256
LSE_TOLERANCE = 0.05
POOLED = """
SELECT pool, size, data FROM pooled_maps
WHERE run_id = $run AND prompt_id = $prompt AND pattern = 'executed' AND layer = $layer AND head = $head
"""
VECTORS = """
SELECT hook, pos, vector FROM activations
WHERE run_id = $run AND prompt_id = $prompt AND layer = $layer
  AND (hook = $query AND head = $head OR hook = $key AND head = $key_head)
ORDER BY hook, pos
"""
KEY_HEADS = """
SELECT count(DISTINCT head) AS n FROM activations
WHERE run_id = $run AND prompt_id = $prompt AND hook = $hook AND layer = $layer AND pos = 0
"""
MASK = """
SELECT kind, data FROM selections
WHERE run_id = $run AND prompt_id = $prompt AND layer = $layer AND head = $head
"""
LSE = """
SELECT q_pos, lse FROM row_stats
WHERE run_id = $run AND prompt_id = $prompt AND pattern = 'executed' AND layer = $layer AND head = $head
"""
SCORES = "SELECT json_extract(extra, '$.scores[' || $layer || ']') AS scores FROM runs WHERE run_id = $run"
KEPT = "SELECT hook FROM activations WHERE run_id = $run AND prompt_id = $prompt AND hook = $hook LIMIT 1"
HEADS = "SELECT max(head) + 1 AS n FROM head_stats WHERE run_id = $run AND prompt_id = $prompt"


@dataclass(frozen=True)
class Cells:
    """`values` is `[rows, columns]` of attention mass; NaN where a query cannot see a key.

    A cell is `pool` queries by `pool` keys: the mean over its queries of the mass on its keys. Exact cells
    have `pool` 1. The window starts are multiples of `pool`.
    """

    values: Floats
    queries: Window
    keys: Window
    pool: int
    exact: bool
    note: str = ""
    kept_vectors: bool = False

    def without_first_key(self) -> Cells:
        """The same cells with the column that holds key 0 left blank (for display only)."""
        if self.keys.start > 0:
            return self
        values = self.values.copy()
        values[:, 0] = np.nan
        return replace(self, values=values)


def cells(source: Source, run: str, selection: Selection, length: int, *, exact: bool = True) -> Cells | None:
    """The head's cells in the selected window: exact where it is small and q and k were kept, else pooled.

    None when neither is stored. `length` is the prompt's number of tokens; `exact=False` wants pooled ones.
    """
    queries = (selection.qs or Window(0, length)).clip(length)
    keys = (selection.ks or Window(0, length)).clip(length)
    note = ""
    if exact and len(queries) <= EXACT_CELLS and len(keys) <= EXACT_CELLS:
        try:
            values = exact_rows(source, run, selection, queries)
        except SourceError as problem:
            note = str(problem)
        else:
            return Cells(values_in(values, queries, keys, length), queries, keys, 1, True)
    return _pooled(source, run, selection, queries, keys, note)


def values_in(rows: Floats, queries: Window, keys: Window, length: int) -> Floats:
    """Rows over all keys cut to the key window; keys after their query become NaN."""
    wide = np.full((len(queries), max(length, keys.stop)), np.nan)
    wide[:, : rows.shape[1]] = rows
    future = np.arange(wide.shape[1])[None, :] > np.arange(queries.start, queries.stop)[:, None]
    wide[future] = np.nan
    return wide[:, keys.start : keys.stop]


def _pooled(
    source: Source, run: str, selection: Selection, queries: Window, keys: Window, note: str
) -> Cells | None:
    row = source.first(POOLED, run=run, prompt=selection.prompt, layer=selection.layer, head=selection.head)
    if not row:
        return None
    pool = int(row["pool"])
    whole = np.asarray(pooled.decode(bytes(row["data"]), int(row["size"])), dtype=np.float64)
    side = np.arange(whole.shape[0])
    whole = np.where(side[None, :] > side[:, None], np.nan, whole)
    rows = Window(queries.start // pool, -(-queries.stop // pool))
    columns = Window(keys.start // pool, -(-keys.stop // pool))
    return Cells(
        whole[rows.start : rows.stop, columns.start : columns.stop],
        Window(rows.start * pool, rows.stop * pool),
        Window(columns.start * pool, columns.stop * pool),
        pool,
        False,
        note,
        bool(source.first(KEPT, run=run, prompt=selection.prompt, hook=_hook(selection.layer, "q"))),
    )


def _hook(layer: int | None, which: str) -> str:
    return f"blocks.{layer}.attn.hook_rot_{which}"


def exact_rows(source: Source, run: str, selection: Selection, queries: Window) -> Floats:
    """Executed softmax rows `[queries, keys up to the last query]` from the kept q and k, in float64.

    Keys that the model or the policy does not allow have 0.

    Raises:
        SourceError: q and k were not kept, or the rows disagree with the stored log-sum-exp.

    """
    head = {"run": run, "prompt": selection.prompt, "layer": selection.layer, "head": selection.head}
    query, key = _vectors(source, head, queries)
    model = _scores(source, run, selection.layer)
    scores = query @ key.T * (model.get("scale") or query.shape[1] ** -0.5)
    if model.get("softcap"):
        scores = np.tanh(scores / model["softcap"]) * model["softcap"]
    kept = kept_rows(source, run, selection, queries, len(key))
    scores = np.where(kept, scores, -np.inf)
    top = np.where(kept.any(axis=1), scores.max(axis=1), 0.0)
    weights = np.exp(scores - top[:, None])
    total = weights.sum(axis=1)
    _check(source, head, queries, top + np.log(np.where(total > 0, total, 1.0)))
    return np.asarray(weights / np.where(total > 0, total, 1.0)[:, None])


def kept_rows(
    source: Source, run: str, selection: Selection, queries: Window, n_keys: int
) -> NDArray[np.bool_]:
    """Which keys the run let each query read, `[queries, keys]`: its selection within what the model allows.

    Raises:
        SourceError: the stored selection is broken.

    """
    distance = np.arange(queries.start, queries.stop)[:, None] - np.arange(n_keys)[None, :]
    kept = distance >= 0
    stored = source.first(MASK, run=run, prompt=selection.prompt, layer=selection.layer, head=selection.head)
    if stored:
        try:
            kept = mask.keep_rows(stored["data"], queries.start, queries.stop, n_keys)
        except ValueError as broken:
            raise SourceError(str(broken)) from broken
    window = _scores(source, run, selection.layer).get("window")
    return np.asarray(kept & (distance < window) if window else kept)


def allowed_counts(source: Source, run: str, selection: Selection, queries: Window) -> NDArray[np.int64]:
    """How many keys the model itself lets each query read: `[queries]`."""
    window = _scores(source, run, selection.layer).get("window")
    return np.minimum(np.arange(queries.start, queries.stop) + 1, window or queries.stop)


def _scores(source: Source, run: str, layer: int | None) -> dict[str, Any]:
    """The layer's `scale`, `softcap` and native `window`, as the run recorded them; empty where it did not."""
    stored = source.first(SCORES, run=run, layer=layer)
    return json.loads(stored["scores"]) if stored and stored["scores"] else {}


def _vectors(source: Source, head: dict[str, Any], queries: Window) -> tuple[Floats, Floats]:
    """The head's queries `[queries, dim]` and its keys up to the last of them `[keys, dim]`."""
    query, key = source.kept(f"vectors {head}", lambda: _kept_vectors(source, head))
    if len(query) < queries.stop:
        raise SourceError("Exact cells need q and k: capture with --keep qk.")
    if len(key) < queries.stop:
        raise SourceError(
            "Exact cells need the keys of every key-value head and position: capture with --keep qk."
        )
    return query[queries.start : queries.stop].astype(np.float64), key[: queries.stop].astype(np.float64)


def _kept_vectors(source: Source, head: dict[str, Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """All queries of a head and all keys that it reads, `[positions, dim]`; empty unless every position is there."""
    hooks = {"query": _hook(head["layer"], "q"), "key": _hook(head["layer"], "k")}
    place = {"run": head["run"], "prompt": head["prompt"]}
    key_heads = source.first(KEY_HEADS, layer=head["layer"], hook=hooks["key"], **place).get("n")
    heads = source.first(HEADS, **place).get("n")
    if not key_heads or not heads or heads % key_heads:
        return np.empty((0, 0), np.float32), np.empty((0, 0), np.float32)
    key_head = head["head"] // (heads // key_heads)
    rows = source.run(VECTORS, {**head, **hooks, "key_head": key_head}).arrow()
    query, key = (_stacked(rows.filter(pc.field("hook") == hook)) for hook in hooks.values())
    return query, key


def _stacked(rows: Any) -> NDArray[np.float32]:
    """Vectors by position, `[positions, dim]`; empty unless every position is there."""
    if not len(rows) or rows["pos"][-1].as_py() != len(rows) - 1:
        return np.empty((0, 0), np.float32)
    flat = rows["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat, dtype=np.float32).reshape(len(rows), -1)


def _check(source: Source, head: dict[str, Any], queries: Window, lse: Floats) -> None:
    stored = source.frame(LSE, **head)
    stored = stored[stored["q_pos"].between(queries.start, queries.stop - 1) & np.isfinite(stored["lse"])]
    if stored.empty:
        return
    off = np.abs(lse[stored["q_pos"].to_numpy() - queries.start] - stored["lse"].to_numpy())
    if off.max() > LSE_TOLERANCE:
        raise SourceError(
            f"The kept q and k do not give the stored log-sum-exp (off by {off.max():.2g} nats): the model "
            "scales or masks its scores in a way the trace does not hold, so pooled cells are shown."
        )
