"""What one query reads, or who reads one key: mass in A and B, what was dropped, what is left out."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparselens.dashboards.head.edge import edges, row_stats
from sparselens.dashboards.head.heatmap import LENGTH
from sparselens.dashboards.head.pattern import exact_rows
from sparselens.dashboards.head.weigh import VALUE, MissingNormsError, norms, weighed
from sparselens.dashboards.query import Source, SourceError, records
from sparselens.dashboards.selection import Selection, Window
from sparselens.dashboards.verdict import number

LEAST = 1e-4
DIGITS = 6


def reads(source: Source, selection: Selection) -> dict[str, Any]:
    """The reads of `selection.q`; by value where ‖W_O v‖ is not stored: no keys, and the `problem`."""
    try:
        return _reads(source, selection)
    except MissingNormsError as missing:
        at = {"q": selection.q, "way": selection.way, "weigh": selection.weigh, "exact": False}
        none: dict[str, list[Any]] = {"keys": [], "a": [], "b": [], "kept_a": [], "kept_b": []}
        return {**at, **none, "problem": str(missing)}


def _reads(source: Source, selection: Selection) -> dict[str, Any]:
    """The keys that query `selection.q` reads (`way` = reads), or the queries that read key q (readers).

    Lists of equal length: `keys` (positions), `a` and `b` (mass, or its share by value; None where it is not stored),
    `kept_a` and `kept_b`; `exact` says that the whole row was computed from q and k; `sentence` sums it up.
    """
    if selection.q is None or selection.layer is None or selection.head is None:
        raise SourceError("Choose a token and a head.")
    found = None
    if selection.way == "reads":
        found = _exact(source, selection)
    exact = found is not None
    if found is None:
        found = _stored(source, selection)
    facts = _facts(source, selection) if selection.way == "reads" else {}
    sentence = _sentence(selection, facts, found, exact=exact)
    if selection.weigh == VALUE:
        found = found if exact else _by_value(source, selection, found, facts)
        whole = "the row's sum" if exact else "the sum over stored keys; what is left out is in no share"
        sentence += f" By value: shares of p · ‖W_O v‖ in {whole}."
    for side in ("a", "b"):
        found[side] = [None if value is None else round(value, DIGITS) for value in found[side]]
    return {
        "q": selection.q,
        "way": selection.way,
        "weigh": selection.weigh,
        "exact": exact,
        "sentence": sentence,
        **found,
    }


def _by_value(
    source: Source, selection: Selection, found: dict[str, list[Any]], facts: dict[str, dict[str, Any]]
) -> dict[str, list[Any]]:
    """The same lists with shares of p · ‖W_O v‖ in place of masses; key 0 counts in a row's sum if it is known."""
    length = _length(source, selection)
    shares: dict[str, list[Any]] = {}
    for side in ("a", "b"):
        run = getattr(selection, side)
        if not run:
            continue
        norm = norms(source, run, selection, length)
        if selection.way == "readers":
            frame = edges(source, selection)
            sizes = (frame[side].fillna(0.0) * norm[frame["k"].to_numpy()]).groupby(frame["q"]).sum()
            totals = [float(sizes.get(query, 0.0)) for query in found["keys"]]
            own = [float(norm[int(selection.q or 0)])] * len(totals)
        else:
            own = [float(norm[key]) for key in found["keys"]]
            total = sum((value or 0.0) * each for value, each in zip(found[side], own, strict=True))
            if 0 not in found["keys"]:
                total += (facts.get(run, {}).get("sink_mass") or 0.0) * float(norm[0])
            totals = [total] * len(own)
        shares[side] = [
            None if value is None else value * each / total if total > 0 else 0.0
            for value, each, total in zip(found[side], own, totals, strict=True)
        ]
    return {**found, **shares}


def _facts(source: Source, selection: Selection) -> dict[str, dict[str, Any]]:
    """What `row_stats` has of the query, by run."""
    stats = row_stats(source, selection)
    return {row["run_id"]: row for row in records(stats[stats["q_pos"] == selection.q])}


def _length(source: Source, selection: Selection) -> int:
    return int(source.first(LENGTH, prompt=selection.prompt).get("n") or 0)


def _stored(source: Source, selection: Selection) -> dict[str, list[Any]]:
    """The stored edges of the query, or of the key, by position."""
    this, other = ("q", "k") if selection.way == "reads" else ("k", "q")
    frame = edges(source, selection)
    rows = records(frame[frame[this] == selection.q].sort_values(other))
    named = {"keys": other, "a": "a", "b": "b", "kept_a": "kept_a", "kept_b": "kept_b"}
    return {name: [row[column] for row in rows] for name, column in named.items()}


def _exact(source: Source, selection: Selection) -> dict[str, list[Any]] | None:
    """Whole rows of both runs from the kept q and k, or None when either was not kept."""
    at = Window(int(selection.q or 0), int(selection.q or 0) + 1)
    runs = {name: getattr(selection, name) for name in ("a", "b") if getattr(selection, name)}
    try:
        sides = {name: exact_rows(source, run, selection, at) for name, run in runs.items()}
    except SourceError:
        return None
    if not sides:
        return None
    keys = np.flatnonzero(np.max(np.concatenate(list(sides.values())), axis=0) >= LEAST)
    kept = {name: (row[0, keys] > 0).tolist() for name, row in sides.items()}
    if selection.weigh == VALUE:
        length = _length(source, selection)
        sides = {
            name: weighed(row, norms(source, runs[name], selection, length)) for name, row in sides.items()
        }
    values = {name: row[0, keys].tolist() for name, row in sides.items()}
    none: list[Any] = [None] * len(keys)
    return {
        "keys": keys.tolist(),
        "a": values.get("a", none),
        "b": values.get("b", none),
        "kept_a": kept.get("a", none),
        "kept_b": kept.get("b", none),
    }


def _sentence(
    selection: Selection, facts: dict[str, dict[str, Any]], found: dict[str, list[Any]], *, exact: bool
) -> str:
    count = len(found["keys"])
    if selection.way == "readers":
        return f"Key {selection.q}: {count} queries have it among their stored keys."
    words = [
        f"Query {selection.q}: whole rows computed from q and k, {count} keys above {LEAST:g}."
        if exact
        else f"Query {selection.q}: {count} stored keys."
    ]
    for name, run in (("A", selection.a), ("B", selection.b)):
        row = facts.get(run)
        if row:
            left = "" if exact else f", left out {number(row['unstored_mass'])}"
            words.append(
                f"{name}: key 0 (sink) {number(row['sink_mass'])}{left}, entropy {number(row['entropy'], 2)}."
            )
    return " ".join(words)
