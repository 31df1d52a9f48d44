"""How much two sets share, and what as many drawn at random would."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import hypergeom, spearmanr


def overlap(first: Iterable[Hashable], second: Iterable[Hashable], among: int) -> dict[str, Any]:
    """Return the columns of `circuit_overlaps` for two sets of equal or unequal size drawn from `among` things.

    `expected` is the hypergeometric mean, `p` the probability of sharing at least as many at random. `size` is the
    smaller one's.
    """
    a, b = set(first), set(second)
    if len(a) > among or len(b) > among:
        raise ValueError(f"sets of {len(a)} and {len(b)} are not drawn from {among}")
    shared, either = len(a & b), len(a | b)
    expected = len(a) * len(b) / among
    return {
        "size": min(len(a), len(b)),
        "among": among,
        "shared": shared,
        "jaccard": shared / either if either else float("nan"),
        "expected": expected,
        "expected_jaccard": expected / (len(a) + len(b) - expected) if either else float("nan"),
        "p": float(hypergeom.sf(shared - 1, among, len(a), len(b))),
    }


def rank_correlation(first: Any, second: Any) -> float:
    """Return Spearman's ρ of two lists of scores; NaN where one of them is constant or too short."""
    if len(first) < 3 or len(set(first)) < 2 or len(set(second)) < 2:
        return float("nan")
    return float(spearmanr(first, second).statistic)


@dataclass(frozen=True, eq=False)
class Ranking:
    """A circuit as its edges in the order of |score|, as many as are known, and the scores of all heads."""

    circuit: str
    edges: Sequence[Hashable]
    heads: Sequence[float]

    def best_heads(self, count: int) -> list[int]:
        """Return the places of the `count` heads of largest |score|."""
        return sorted(range(len(self.heads)), key=lambda place: -abs(self.heads[place]))[:count]


def compared(first: Ranking, second: Ranking, *, edges: int, heads: int, among: int) -> dict[str, Any]:
    """Return the rows of `circuit_overlaps` of two circuits: their best `edges` of `among`, and their best `heads`."""
    by_edges = overlap(first.edges[:edges], second.edges[:edges], among)
    by_heads = overlap(first.best_heads(heads), second.best_heads(heads), len(first.heads))
    ranks = [float("nan"), rank_correlation(first.heads, second.heads)]
    return {
        "circuit_a": first.circuit,
        "circuit_b": second.circuit,
        "level": ["edges", "heads"],
        **{name: [by_edges[name], by_heads[name]] for name in by_edges},
        "spearman": ranks,
    }
