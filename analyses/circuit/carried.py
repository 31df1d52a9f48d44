"""What a circuit carries by its size, what its heads read, and what it shares, as rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from sparselens.analyses.circuit.curve import (
    BASE,
    OWN,
    RANDOM,
    REST,
    column,
    columns,
    node_scores,
    ranked,
    ratio,
    share,
)
from sparselens.analyses.circuit.overlap import Ranking, compared
from sparselens.analyses.circuit.search import Search
from sparselens.analyses.interval import Interval
from sparselens.kernels.head import Head

TOP_HEADS = 20
"""Heads whose overlap is counted, at most half of all."""


def curves(found: Search) -> Iterator[dict[str, Any]]:
    """Yield a block a measure and circuit."""
    clusters, own, policy = found.clusters, found.circuits, found.chosen.policy

    def block(
        circuit: str, measure: str, sizes: Mapping[int, Tensor], values: list[Interval]
    ) -> dict[str, Any]:
        counts = [int(edges.sum()) for edges in sizes.values()]
        about = {"circuit": circuit, "policy": policy, "measure": measure}
        return about | {"asked": list(sizes), "n_edges": counts} | columns(values)

    for measure, name in (("faithfulness", OWN), ("complement", REST)):
        yield block(
            found.circuit, measure, own, [share(found.carried, f"{name} {size}", clusters) for size in own]
        )
    empty = column(found.carried, "empty")
    grown = ratio(column(found.knocked, RANDOM) - empty, column(found.carried, "whole") - empty, clusters)
    yield block(found.circuit, "random", {found.asked: found.edges_of[RANDOM]}, [grown])
    if found.base is None:
        return
    ids = [case.clean.id for case in found.tested]
    below = np.array([found.base.whole[each] - found.base.empty[each] for each in ids])
    theirs = found.base.circuits
    yield block(
        found.base.circuit,
        "faithfulness",
        theirs,
        [share(found.carried, f"{BASE} {size}", clusters) for size in theirs],
    )
    for circuit, name, sizes in ((found.circuit, OWN, own), (found.base.circuit, BASE, theirs)):
        done = [ratio(column(found.carried, f"{name} {size}") - empty, below, clusters) for size in sizes]
        yield block(circuit, "base_job", sizes, done)


def reads(found: Search) -> Iterator[dict[str, Any]]:
    """Yield a block a circuit: the task's reads by the circuit's heads."""
    inside = {found.circuit: found.graph.heads_of(found.circuits[found.asked])}
    if found.base is not None:
        inside[found.base.circuit] = found.graph.heads_of(found.base.circuits[found.base.asked])
    numbers = {
        "mass_base": np.mean([each["mass"] for each in found.base_answers], axis=0),
        "kept": np.mean([each["kept"] for each in found.answers], axis=0),
        "mass": np.mean([each["mass"] for each in found.answers], axis=0),
    }
    names = [f"{row}→{key}" for row, key in found.chosen.about.reads]
    for circuit, heads in inside.items():
        if heads:
            yield _read_block(found, circuit, heads, names, numbers)


def _read_block(
    found: Search, circuit: str, heads: Sequence[Head], names: Sequence[str], numbers: Mapping[str, Any]
) -> dict[str, Any]:
    layers, of_layer = (list(each) for each in zip(*heads, strict=True))
    return {
        "circuit": circuit,
        "policy": found.chosen.policy,
        "read": np.repeat(np.array(names, object), len(heads)),
        "layer": np.tile(layers, len(names)),
        "head": np.tile(of_layer, len(names)),
        **{name: values[:, layers, of_layer].reshape(-1) for name, values in numbers.items()},
        "n": len(found.every),
    }


def overlaps(found: Search) -> Iterator[dict[str, Any]]:
    """Yield the overlap with the base's circuit, and that of the scores on two halves of the searched prompts."""
    mine = _ranking(found, found.scores)
    pairs = []
    if found.base is not None:
        pairs.append((found.base.ranking, mine))
    if found.scores_of_halves is not None:
        one, other = (_ranking(found, scores) for scores in found.scores_of_halves)
        pairs.append((one, other))
    heads = min(TOP_HEADS, found.graph.layers * found.graph.heads // 2)
    for first, second in pairs:
        yield compared(first, second, edges=found.asked, heads=heads, among=found.graph.n_edges)


def _ranking(found: Search, scores: Tensor) -> Ranking:
    graph = found.graph
    nodes = node_scores(scores)
    heads = [value for layer in range(graph.layers) for value in nodes[graph.writing(layer)].tolist()]
    places = [divmod(each, len(graph.receivers)) for each in ranked(graph, scores, found.asked).tolist()]
    return Ranking(found.circuit, [(graph.senders[i], graph.receivers[j]) for i, j in places], heads)
