"""What is stored row by row of one head in both runs: each query and key that either run lists, and sums of rows."""

from __future__ import annotations

from typing import Any

from sparselens.dashboards.choice import parents
from sparselens.dashboards.query import Source, SourceError, Value
from sparselens.dashboards.selection import Selection

MOST = 3_000_000
SIDE = """
SELECT q_pos, k_pos, p, p_base, kept FROM edges
WHERE run_id = ${run} AND prompt_id = $prompt AND layer = $layer AND head = $head
"""
EDGES = """
WITH a AS ({a}), b AS ({b})
SELECT q_pos::INTEGER AS q, k_pos::INTEGER AS k, coalesce(a.p, CASE WHEN $a_is_base THEN b.p_base END) AS a,
       coalesce(b.p, CASE WHEN $b_is_base THEN a.p_base END) AS b, a.kept AS kept_a, b.kept AS kept_b
FROM a FULL JOIN b USING (q_pos, k_pos) ORDER BY q, k
""".format(a=SIDE.format(run="a"), b=SIDE.format(run="b"))
ROWS = """
SELECT run_id, q_pos, sink_mass, unstored_mass, entropy, isinf(lse) AND lse < 0 AS is_empty FROM row_stats
WHERE run_id IN ($a, $b) AND prompt_id = $prompt AND pattern = 'executed' AND layer = $layer AND head = $head
ORDER BY q_pos
"""
PARENTS = "SELECT run_id, parents FROM runs WHERE run_id IN ($a, $b)"


def edges(source: Source, selection: Selection) -> Any:
    """A frame `q, k, a, b, kept_a, kept_b`, masses NaN where a run does not list the key.

    Raises:
        SourceError: the head has more edges than are read at a time.

    """
    at: dict[str, Value] = {name: getattr(selection, name) for name in ("a", "prompt", "layer", "head")}
    at |= {"b": selection.b or None, **bases(source, selection)}

    def read() -> Any:
        found = source.run(EDGES, at, max_rows=MOST).df()
        if len(found) >= MOST:
            raise SourceError(
                f"{selection.head_name} has {MOST:,} stored edges or more in this prompt, too many."
            )
        return found

    return source.kept(f"edges {at}", read)


def row_stats(source: Source, selection: Selection) -> Any:
    """A frame of the head's rows in both runs: masses on the first token and on what is not stored, entropy.

    `is_empty`: the run keeps no key in this row.
    """
    at = {name: getattr(selection, name) for name in ("a", "prompt", "layer", "head")}
    return source.frame(ROWS, b=selection.b or None, **at)


def bases(source: Source, selection: Selection) -> dict[str, bool]:
    """Whether each run is the other's base, so that the other's edges have its masses too."""
    asked = {"a": selection.a, "b": selection.b or None}
    family = {row["run_id"]: parents(row) for row in source.records(PARENTS, **asked)}
    return {
        "a_is_base": selection.a in family.get(selection.b, []),
        "b_is_base": selection.b in family.get(selection.a, []),
    }
