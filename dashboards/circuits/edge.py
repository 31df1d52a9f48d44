"""The edges of two circuits: which are among the best of which, their scores and places."""

from __future__ import annotations

from typing import Any

from sparselens.dashboards.circuits.circuit import whole
from sparselens.dashboards.query import Source
from sparselens.dashboards.verdict import number

EDGES = """
WITH near AS (
  SELECT circuit, sender, receiver, score, rank, in_circuit FROM circuit_edges
  WHERE circuit IN ($a, $b) AND sender IS NOT NULL AND receiver IS NOT NULL
    AND ($node IS NULL OR sender = $node OR receiver IN $reads)
), placed AS (
  SELECT *, in_circuit AND count(*) FILTER (in_circuit) OVER (
    PARTITION BY circuit ORDER BY rank, sender, receiver ROWS UNBOUNDED PRECEDING) <= $size AS best
  FROM near
)
SELECT sender, receiver,
       max(score) FILTER (circuit = $a) AS score_a, max(score) FILTER (circuit = $b) AS score_b,
       min(rank) FILTER (circuit = $a) AS rank_a, min(rank) FILTER (circuit = $b) AS rank_b,
       coalesce(bool_or(best) FILTER (circuit = $a), false) AS in_a,
       coalesce(bool_or(best) FILTER (circuit = $b), false) AS in_b
FROM placed GROUP BY sender, receiver HAVING bool_or(best) ORDER BY least(rank_a, rank_b), sender, receiver
"""
EDGE = """
SELECT circuit = $a AS is_a, score, rank, in_circuit FROM circuit_edges
WHERE circuit IN ($a, $b) AND sender = $sender AND receiver = $receiver ORDER BY is_a DESC
"""
HELD = """
SELECT circuit = $a AS is_a, count(*) FILTER (in_circuit)::BIGINT AS n,
       sum(abs(score)) FILTER (in_circuit AND place <= $size) / nullif(sum(abs(score)) FILTER (in_circuit), 0)
         AS share
FROM (SELECT circuit, score, in_circuit, count(*) FILTER (in_circuit) OVER (
        PARTITION BY circuit ORDER BY rank, sender, receiver ROWS UNBOUNDED PRECEDING) AS place
      FROM circuit_edges WHERE circuit IN ($a, $b))
GROUP BY circuit ORDER BY is_a DESC
"""
Rows = list[dict[str, Any]]


def edges(source: Source, circuits: dict[str, Any], size: int, near: str, reads: list[str]) -> Rows:
    """The best `size` edges of one or two circuits, `a` and `b`; only those of the node `near` where it is named."""
    rows = source.records(EDGES, node=near or None, reads=reads, size=size, **circuits)
    return whole(rows, "rank_a", "rank_b")


def kind(row: dict[str, Any]) -> str:
    """`A only`, `B only` or `both`: in whose best edges an edge is."""
    return "both" if row["in_a"] and row["in_b"] else "A only" if row["in_a"] else "B only"


def said(row: dict[str, Any], *, pair: bool) -> str:
    """An edge's scores and places in words."""
    parts = [
        f"{side} {number(row[f'score_{name}'])}"
        + (f", place {row[f'rank_{name}']:,}" if row[f"rank_{name}"] is not None else ", not stored")
        for side, name in (("A", "a"), ("B", "b"))
        if pair or side == "A"
    ]
    return "; ".join(parts)
