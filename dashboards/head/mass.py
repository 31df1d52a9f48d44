"""Where a head's attention went from A to B: by class of key, what B kept of A's mass, what it dropped, what gained.

Whole rows where both runs kept q and k; else the stored edges, with the mass on the first token exact (`row_stats`),
and a part of its own for what is not stored. Of every row A and B sum to 1, so what is dropped is what others gain.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sparselens.dashboards.head.edge import edges, row_stats
from sparselens.dashboards.head.key_class import NOT_STORED, SINKS, Classes
from sparselens.dashboards.head.pattern import MASK, exact_rows, kept_rows
from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.selection import Selection, Window

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

BLOCK = 256
WHOLE = 1 << 23
"""Cells (rows × keys) up to which whole rows are computed from q and k."""
OVER = 1e-3
"""What the stored masses of a row may exceed 1 by, float16 of older traces included."""
KEPT_OF_A = """
SELECT n_rows, kept_mass FROM diffs
WHERE run_a = $a AND run_b = $b AND prompt_id = $prompt AND scope = 'local_mask' AND rows = $rows
  AND layer = $layer AND head = $head
"""


@dataclass(frozen=True)
class Part:
    """Masses of one class of keys, means over rows: of A, of B, and A's on keys that B drops (None: not known)."""

    name: str
    a: float
    b: float
    dropped: float | None

    @property
    def kept(self) -> float | None:
        """A's mass on keys that B keeps."""
        return None if self.dropped is None else self.a - self.dropped

    @property
    def gained(self) -> float | None:
        """What keys that B keeps have more in B than in A; below 0 where they lost."""
        return None if self.kept is None else self.b - self.kept


@dataclass(frozen=True)
class Mass:
    """The parts, which sum to 1 in A and in B, and the keys by mean mass: `pos, a, b, dropped, gained` `[tokens]`.

    `exact`: whole rows; `empty`: rows in which B keeps nothing, so that its masses sum to less than 1; `one_sided`:
    stored edges of one run whose mass in the other is not known, and is among what is not stored there.
    """

    parts: list[Part]
    keys: dict[str, Floats]
    n_rows: int
    exact: bool
    empty: int = 0
    one_sided: int = 0

    @property
    def dropped(self) -> float | None:
        """All of A's mass that B drops, None where a part of it is not known."""
        known = [part.dropped for part in self.parts if part.dropped is not None]
        return sum(known) if len(known) == len(self.parts) else None


@dataclass
class _Sums:
    """Sums over rows, by class of key and by key."""

    classes: Classes
    by_class: dict[str, Floats] = field(init=False)
    by_key: dict[str, Floats] = field(init=False)

    def __post_init__(self) -> None:
        names = ("a", "b", "dropped", "gained")
        self.by_class = {name: np.zeros(len(self.classes.names)) for name in names}
        self.by_key = {name: np.zeros(len(self.classes.of)) for name in names}

    def add(self, query: Ints, key: Ints, a: Floats, b: Floats, kept: NDArray[np.bool_]) -> None:
        """Add cells; all arguments have one length."""
        kind = self.classes.kinds(query, key)
        values = {"a": a, "b": b, "dropped": np.where(kept, 0.0, a), "gained": np.where(kept, b - a, 0.0)}
        for name, each in values.items():
            self.by_class[name] += np.bincount(kind, each, len(self.classes.names))
            self.by_key[name] += np.bincount(key, each, len(self.classes.of))


def mass(source: Source, selection: Selection, rows: Ints, classes: Classes, over: str = "") -> Mass:
    """Where the mass of the rows went; `over` is their name in `diffs`, empty where they have none.

    Raises:
        SourceError: nothing is stored, or what is stored sums to more than 1 a row.

    """
    if not len(rows):
        raise SourceError("There is no such row in this prompt.")
    if (int(rows[-1]) + 1 - int(rows[0])) * (int(rows[-1]) + 1) <= WHOLE:
        try:
            return _whole(source, selection, rows, classes)
        except SourceError:
            pass  # q and k were not kept, or do not give what ran: the stored edges are the next best
    return _stored(source, selection, rows, classes, over)


def blocks(rows: Ints) -> list[tuple[Window, Ints]]:
    """Ranges of up to `BLOCK` queries that hold the rows, each with its rows as places in the range."""
    found = []
    for start in range(int(rows[0]), int(rows[-1]) + 1, BLOCK):
        mine = rows[(rows >= start) & (rows < start + BLOCK)]
        if len(mine):
            window = Window(int(mine[0]), int(mine[-1]) + 1)
            found.append((window, mine - window.start))
    return found


def _whole(source: Source, selection: Selection, rows: Ints, classes: Classes) -> Mass:
    sums = _Sums(classes)
    empty = 0
    for window, places in blocks(rows):
        a = exact_rows(source, selection.a, selection, window)[places]
        b = exact_rows(source, selection.b, selection, window)[places]
        kept = kept_rows(source, selection.b, selection, window, window.stop)[places]
        query, key = (
            each.ravel()
            for each in np.broadcast_arrays((places + window.start)[:, None], np.arange(window.stop)[None, :])
        )
        sums.add(query, key, a.ravel(), b.ravel(), kept.ravel())
        empty += int((~kept.any(axis=1)).sum())
    return _made(sums, len(rows), exact=True, empty=empty)


def _stored(source: Source, selection: Selection, rows: Ints, classes: Classes, over: str) -> Mass:
    at = {name: getattr(selection, name) for name in ("a", "b", "prompt", "layer", "head")}
    frame = edges(source, selection)
    frame = frame[frame["q"].isin(rows)]
    stats = row_stats(source, selection)
    stats = stats[stats["q_pos"].isin(rows)]
    if frame.empty:
        raise SourceError(f"No edges of {selection.head_name} are stored for these rows.")
    query, key = frame["q"].to_numpy(np.int64), frame["k"].to_numpy(np.int64)
    a, b = (frame[side].fillna(0.0).to_numpy(np.float64) for side in ("a", "b"))
    sums = _Sums(classes)
    sums.add(query, key, a, b, _kept(source, selection, frame))
    _first(source, selection, rows, stats, sums)
    empty = int(stats[stats["run_id"] == selection.b]["is_empty"].fillna(value=False).sum())
    dropped = None
    known = source.first(KEPT_OF_A, rows=over, **at) if over else {}
    if known.get("kept_mass") is not None and known["n_rows"] == len(rows):
        dropped = max((1 - known["kept_mass"]) * len(rows) - float(sums.by_class["dropped"].sum()), 0.0)
    rest = {
        side: total - float(sums.by_class[side].sum())
        for side, total in (("a", len(rows)), ("b", len(rows) - empty))
    }
    for side, left in rest.items():
        if not left > -OVER * len(rows):
            raise SourceError(
                f"The stored masses of {side.upper()} sum to {1 - left / len(rows):.3f} a row, more than there is: "
                "the trace is broken here."
            )
    left_out = (max(rest["a"], 0.0), max(rest["b"], 0.0), dropped)
    made = _made(sums, len(rows), exact=False, empty=empty, left_out=left_out)
    return replace(made, one_sided=int(frame[["a", "b"]].isna().any(axis=1).sum()))


def _kept(source: Source, selection: Selection, frame: Any) -> NDArray[np.bool_]:
    """Whether B keeps the key of each edge: as its own edges say, of A's from B's selection."""
    said = frame["kept_b"]
    kept = np.asarray(said.astype("boolean").fillna(value=False).to_numpy(bool))
    unsaid = said.isna().to_numpy()
    at = {name: getattr(selection, name) for name in ("prompt", "layer", "head")}
    if unsaid.any() and source.first(MASK, run=selection.b, **at):
        query, key = frame["q"].to_numpy(np.int64), frame["k"].to_numpy(np.int64)
        for window, _ in blocks(np.unique(query[unsaid])):
            mine = unsaid & (query >= window.start) & (query < window.stop)
            rows = kept_rows(source, selection.b, selection, window, window.stop)
            kept[mine] = rows[query[mine] - window.start, key[mine]]
    return kept


def _first(source: Source, selection: Selection, rows: Ints, stats: Any, sums: _Sums) -> None:
    """Put the first token's exact mass in the place of what edges hold of it, where it is stored for all rows."""
    columns = {
        side: stats[stats["run_id"] == getattr(selection, side)]["sink_mass"].to_numpy(np.float64)
        for side in ("a", "b")
    }
    if any(len(each) != len(rows) or np.isnan(each).any() for each in columns.values()):
        return
    kept = np.concatenate(
        [kept_rows(source, selection.b, selection, window, 1)[places, 0] for window, places in blocks(rows)]
    )
    a, b = columns["a"], columns["b"]
    exact = {
        "a": a.sum(), "b": b.sum(), "dropped": a[~kept].sum(), "gained": (b - a)[kept].sum(),
    }  # fmt: skip
    for name, value in exact.items():
        sums.by_class[name][sums.classes.first] = value
        sums.by_key[name][0] = value


def _made(
    sums: _Sums,
    n_rows: int,
    *,
    exact: bool,
    empty: int,
    left_out: tuple[float, float, float | None] | None = None,
) -> Mass:
    found = sums.by_class
    parts = [
        Part(name, found["a"][i] / n_rows, found["b"][i] / n_rows, found["dropped"][i] / n_rows)
        for i, name in enumerate(sums.classes.names)
        if found["a"][i] or found["b"][i] or name != SINKS
    ]
    if left_out is not None:
        a, b, dropped = left_out
        parts.append(Part(NOT_STORED, a / n_rows, b / n_rows, None if dropped is None else dropped / n_rows))
    keys = {name: values / n_rows for name, values in sums.by_key.items()}
    return Mass(parts, keys, n_rows, exact, empty)
