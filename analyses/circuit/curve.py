"""How much of a task a circuit carries: ratios of means over prompts, and the smallest circuit that suffices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparselens.analyses.circuit.graph import Graph
from sparselens.analyses.interval import Interval, bounds, resamples

OWN, REST, BASE, RANDOM, WITHOUT = "own", "rest", "base", "random", "without"
"""What the passes of a prompt are named after, with a number of edges or a head."""


def ratio(above: Any, below: Any, clusters: Sequence[str]) -> Interval:
    """Return Σ above ÷ Σ below of `[n]` each, with its bootstrap interval over whole clusters.

    Never the mean of ratios: a prompt in which nothing happens would decide it. NaN bounds below two clusters.
    """
    times = resamples(clusters)
    top, bottom = np.asarray(above, float), np.asarray(below, float)
    low, high = bounds((times @ top) / (times @ bottom))
    return Interval(float(top.sum() / bottom.sum()), low, high, len(top), len(set(clusters)))


def share(numbers: Sequence[Mapping[str, Any]], name: str, clusters: Sequence[str]) -> Interval:
    """Return (F(name) − F(∅)) ÷ (F(M) − F(∅)) over prompts."""
    empty = column(numbers, "empty")
    return ratio(column(numbers, name) - empty, column(numbers, "whole") - empty, clusters)


def column(numbers: Sequence[Mapping[str, Any]], name: str) -> Any:
    """Return a number of every prompt `[prompts]`."""
    return np.array([float(each[name]) for each in numbers])


def circuits(graph: Graph, scores: Tensor, sizes: Sequence[int]) -> dict[int, Tensor]:
    """Return the best edges by |score| for each size that the graph has, at most all of its edges."""
    kept = {min(size, graph.n_edges) for size in sizes}
    return {size: graph.best(scores, size) for size in sorted(kept)}


def passes(graph: Graph, own: Mapping[int, Tensor], base: Mapping[int, Tensor]) -> dict[str, Tensor]:
    """Return the sets of edges that are run on every test prompt, by name."""
    found = {f"{OWN} {size}": edges for size, edges in own.items()}
    found |= {f"{REST} {size}": graph.allowed & ~edges for size, edges in own.items()}
    return found | {f"{BASE} {size}": edges for size, edges in base.items()}


def sufficient(
    numbers: Sequence[Mapping[str, Any]], sizes: Sequence[int], clusters: Sequence[str], least: float
) -> tuple[int, bool]:
    """Return the smallest size whose faithfulness is at least `least`, and True; else the largest, and False."""
    for size in sizes:
        if share(numbers, f"{OWN} {size}", clusters).mean >= least:
            return size, True
    return sizes[-1], False


def node_scores(scores: Tensor) -> Tensor:
    """Return the predicted change of the metric when a sender is ablated `[senders]`: the sum over its edges."""
    return scores.sum(1)


def knockouts(graph: Graph, edges: Tensor, scores: Tensor, count: int, seed: int) -> dict[str, Tensor]:
    """Return the circuit without each of the `count` heads of largest |score| in it, and one grown at random."""
    nodes = node_scores(scores)
    found = {}
    senders = {name: place for place, name in enumerate(graph.senders)}
    inside = [f"L{layer}H{head}" for layer, head in graph.heads_of(edges)]
    for name in sorted(inside, key=lambda each: -abs(float(nodes[senders[each]])))[:count]:
        less = edges.clone()
        less[senders[name]] = False
        found[f"{WITHOUT} {name}"] = less
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(scores.shape, generator=generator)
    return found | {RANDOM: graph.greedy(noise, max(int(edges.sum()), 1))}


def ranked(graph: Graph, scores: Tensor, count: int) -> Tensor:
    """Return the places of the `count` edges of largest |score|, in order, in the flattened scores."""
    sizes = scores.abs().masked_fill(~graph.allowed, -1.0).flatten()
    best: Tensor = sizes.topk(min(count, graph.n_edges)).indices
    return best


def columns(found: Sequence[Interval], name: str = "value") -> dict[str, Any]:
    """Return intervals as columns."""
    return {
        name: [each.mean for each in found],
        "ci_low": [each.low for each in found],
        "ci_high": [each.high for each in found],
        "n": [each.n for each in found],
        "n_clusters": [each.n_clusters for each in found],
    }


def measured(name: str, found: Sequence[Interval | None]) -> dict[str, Any]:
    """Return intervals as three columns, None where nothing was measured."""
    parts = {"": "mean", "_low": "low", "_high": "high"}
    return {
        f"{name}{end}": [None if each is None else getattr(each, part) for each in found]
        for end, part in parts.items()
    }
