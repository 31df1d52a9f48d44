"""What one query reads, or who reads one key: mass in A and B, what was dropped, what is left out."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparselens.dashboards.choice import parents
from sparselens.dashboards.pattern import exact_rows
from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.selection import Selection, Window
from sparselens.dashboards.verdict import number

SIDE = """
SELECT {other} AS pos, p, p_base, kept FROM edges
WHERE run_id = ${run} AND prompt_id = $prompt AND layer = $layer AND head = $head AND {this} = $q
"""
STORED = """
WITH a AS ({a}), b AS ({b})
SELECT pos, coalesce(a.p, CASE WHEN $a_is_base THEN b.p_base END) AS a,
       coalesce(b.p, CASE WHEN $b_is_base THEN a.p_base END) AS b, a.kept AS kept_a, b.kept AS kept_b
FROM a FULL JOIN b USING (pos) ORDER BY pos
"""
QUERY_READS = STORED.format(
    a=SIDE.format(other="k_pos", this="q_pos", run="a"), b=SIDE.format(other="k_pos", this="q_pos", run="b")
)
KEY_READERS = STORED.format(
    a=SIDE.format(other="q_pos", this="k_pos", run="a"), b=SIDE.format(other="q_pos", this="k_pos", run="b")
)
ROW = """
SELECT run_id, unstored_mass, sink_mass, entropy FROM row_stats
WHERE run_id IN ($a, $b) AND prompt_id = $prompt AND pattern = 'executed' AND layer = $layer AND head = $head
  AND q_pos = $q
"""
PARENTS = "SELECT run_id, parents FROM runs WHERE run_id IN ($a, $b)"
LEAST = 1e-4


def reads(source: Source, selection: Selection) -> dict[str, Any]:
    """The keys that query `selection.q` reads (`way` = reads), or the queries that read key q (readers).

    Lists of equal length: `keys` (positions), `a` and `b` (mass or None where it is not stored), `kept_a`
    and `kept_b`; `exact` says that the whole row was computed from q and k; `sentence` sums it up.
    """
    if selection.q is None or selection.layer is None or selection.head is None:
        raise SourceError("Choose a token and a head.")
    found = None
    if selection.way == "reads":
        found = _exact(source, selection)
    exact = found is not None
    if found is None:
        found = _stored(source, selection)
    rows = source.records(ROW, **_head(selection)) if selection.way == "reads" else []
    facts = {row["run_id"]: row for row in rows}
    return {
        "q": selection.q,
        "way": selection.way,
        "exact": exact,
        "sentence": _sentence(selection, facts, found, exact=exact),
        **found,
    }


def _head(selection: Selection) -> dict[str, Any]:
    names = ("a", "b", "prompt", "layer", "head", "q")
    return {name: getattr(selection, name) for name in names}


def _stored(source: Source, selection: Selection) -> dict[str, list[Any]]:
    family = {row["run_id"]: parents(row) for row in source.records(PARENTS, a=selection.a, b=selection.b)}
    rows = source.records(
        QUERY_READS if selection.way == "reads" else KEY_READERS,
        a_is_base=selection.a in family.get(selection.b, []),
        b_is_base=selection.b in family.get(selection.a, []),
        **_head(selection),
    )
    named = {"keys": "pos", "a": "a", "b": "b", "kept_a": "kept_a", "kept_b": "kept_b"}
    return {name: [row[column] for row in rows] for name, column in named.items()}


def _exact(source: Source, selection: Selection) -> dict[str, list[Any]] | None:
    """Whole rows of both runs from the kept q and k, or None when either was not kept."""
    at = Window(int(selection.q or 0), int(selection.q or 0) + 1)
    sides = {}
    try:
        for name in ("a", "b"):
            run = getattr(selection, name)
            if run:
                sides[name] = exact_rows(source, run, selection, at)[0]
    except SourceError:
        return None
    if not sides:
        return None
    most = np.max(np.stack(list(sides.values())), axis=0)
    keys = np.flatnonzero(most >= LEAST)
    none: list[Any] = [None] * len(keys)
    values = {name: row[keys].tolist() for name, row in sides.items()}
    dropped = {name: [mass > 0 for mass in masses] for name, masses in values.items()}
    return {
        "keys": keys.tolist(),
        "a": values.get("a", none),
        "b": values.get("b", none),
        "kept_a": dropped.get("a", none),
        "kept_b": dropped.get("b", none),
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
