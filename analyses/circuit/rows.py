"""A circuit that was found and tested, as rows of the tables of circuits."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from sparselens.analyses.circuit.curve import (
    BASE,
    OWN,
    RANDOM,
    REST,
    WITHOUT,
    column,
    node_scores,
    ratio,
    share,
)
from sparselens.analyses.circuit.measure import Numbers
from sparselens.analyses.circuit.overlap import Ranking, compared
from sparselens.analyses.circuit.plan import Circuit
from sparselens.analyses.circuit.search import Answered, Search
from sparselens.analyses.circuit.task import Case, needed
from sparselens.analyses.interval import Interval, clustered_mean
from sparselens.kernels.head import Head
from sparselens.kernels.policy import parse as parse_policy

Block = tuple[str, dict[str, Any]]
TASK = "circuit"
TOP_HEADS = 20
"""Heads whose overlap is counted, at most half of all."""


def record(chosen: Circuit, answered: Answered, found: Search | None) -> dict[str, Any]:
    """Return the fields of the run's record: its policy, and what was found."""
    policy = parse_policy(chosen.policy)
    base = None if found is None else found.base
    return {
        "policy": chosen.policy,
        "policy_json": json.dumps(policy.to_json()),
        "policy_hash": policy.hash,
        "policy_source": policy.source_code if ".py:" in chosen.policy else None,
        "phase": policy.phase,
        "off_label": policy.off_label,
        "lookahead": policy.lookahead,
        "kernel": chosen.kernel,
        "seed": chosen.seed,
        "prompt_set": chosen.prompts,
        "extra": {
            "applicable": answered.applicable,
            "accuracy": answered.accuracy,
            "chance": answered.chance,
            "needed": needed(answered.chance),
            "circuit": None if found is None else found.circuit,
            "base_circuit": None if base is None else base.circuit,
            "base_run": None if base is None else base.run_id,
        },
    }


def accuracy_rows(every: Sequence[Case], answers: Sequence[Numbers], answered: Answered) -> list[Block]:
    """Return how the task is done: rows of `evals` and, by prompt, of `prompt_scores`."""
    clusters = [case.cluster for case in every]
    numbers = {
        "accuracy": [float(each["right"]) for each in answers],
        "reference_accuracy": [float(each["reference_right"]) for each in answers],
        "density": [float(each["density"]) for each in answers],
    }
    found = {name: clustered_mean(values, clusters) for name, values in numbers.items()}
    nan = float("nan")
    for name, value in (("chance", answered.chance), ("needed", needed(answered.chance))):
        found[name] = Interval(value, nan, nan, len(every), len(set(clusters)))
    right = {"prompt_id": [case.clean.id for case in every], "value": numbers["accuracy"]}
    return [
        ("evals", {"task": TASK, "metric": list(found), **_columns(list(found.values()))}),
        ("prompt_scores", {"task": TASK, "metric": "right", **right}),
    ]


def rows_of(found: Search) -> list[Block]:
    """Return every row."""
    ids = [case.clean.id for case in found.tested]
    metrics = [
        (
            "prompt_scores",
            {"task": TASK, "metric": name, "prompt_id": ids, "value": column(found.carried, name)},
        )
        for name in ("whole", "empty")
    ]
    return [
        *accuracy_rows(found.every, found.answers, found.answered),
        *metrics,
        ("circuits", _circuit(found)),
        ("circuit_edges", _edges(found)),
        ("circuit_nodes", _nodes(found)),
        *[("circuit_curves", each) for each in _curves(found)],
        *[("circuit_reads", each) for each in _reads(found)],
        *[("circuit_overlaps", each) for each in _overlaps(found)],
    ]


def _circuit(found: Search) -> dict[str, Any]:
    chosen, edges = found.chosen, found.circuits[found.asked]
    sizes = found.scores.abs()[found.graph.allowed]
    stored = min(chosen.edges, found.graph.n_edges)
    mlps = sum(bool(edges[found.graph.mlp_writing(layer)].any()) for layer in range(found.graph.layers))
    whole = {name: float(column(found.carried, name).mean()) for name in ("whole", "empty")}
    one = {
        "circuit": found.circuit,
        "task": chosen.about.name,
        "policy": chosen.policy,
        "model": found.model,
        "prompts": chosen.prompts,
        "metric": chosen.about.metric,
        "asked": found.asked,
        "n_edges": int(edges.sum()),
        "n_heads": len(found.graph.heads_of(edges)),
        "n_mlps": mlps,
        "all_edges": found.graph.n_edges,
        "stored": stored,
        "unstored": float(1 - sizes.topk(stored).values.sum() / sizes.sum()),
        "sufficient": found.sufficient,
        **whole,
        "accuracy": float(np.mean([bool(each["right"]) for each in found.answers])),
        "chance": found.answered.chance,
        "n_found": len(found.searched),
    }
    carried = share(found.carried, f"{OWN} {found.asked}", found.clusters)
    return {name: [value] for name, value in one.items()} | _columns([carried], "faithfulness")


def _edges(found: Search) -> dict[str, Any]:
    graph, inside = found.graph, found.circuits[found.asked]
    best = _ranked(found, found.scores, found.chosen.edges)
    senders, receivers = best // len(graph.receivers), best % len(graph.receivers)
    return {
        "circuit": found.circuit,
        "sender": [graph.senders[place] for place in senders.tolist()],
        "receiver": [graph.receivers[place] for place in receivers.tolist()],
        "score": found.scores.flatten()[best].numpy(),
        "rank": np.arange(1, len(best) + 1),
        "in_circuit": inside.flatten()[best].numpy(),
    }


def _nodes(found: Search) -> dict[str, Any]:
    graph, clusters = found.graph, found.clusters
    layer, head = _places(found)
    direct = [
        clustered_mean(values, clusters) for values in np.stack([each["direct"] for each in found.carried]).T
    ]
    whole = column(found.carried, "whole")
    ablated: dict[str, Interval] = {}
    for place, (at, number) in enumerate(found.heads):
        changes = np.array([each["without"][place] for each in found.carried]) - whole
        ablated[f"L{at}H{number}"] = clustered_mean(changes, clusters)
    below = whole - column(found.carried, "empty")
    kept = column(found.carried, f"{OWN} {found.asked}")
    lost = {
        name.removeprefix(f"{WITHOUT} "): ratio(kept - column(found.knocked, name), below, clusters)
        for name in found.edges_of
        if name.startswith(f"{WITHOUT} ")
    }
    names = list(graph.senders)
    return {
        "circuit": found.circuit,
        "node": names,
        "layer": layer,
        "head": head,
        "score": node_scores(found.scores).numpy(),
        **_measured("direct", direct),
        **_measured("ablated", [ablated.get(name) for name in names]),
        **_measured("minimality", [lost.get(name) for name in names]),
        "in_circuit": found.circuits[found.asked].any(1).numpy(),
    }


def _places(found: Search) -> tuple[list[int | None], list[int | None]]:
    """Return layer and head of every sender, None where it has none."""
    graph = found.graph
    layer: list[int | None] = [None]
    head: list[int | None] = [None]
    for number in range(graph.layers):
        layer += [number] * (graph.heads + 1)
        head += [*range(graph.heads), None]
    return layer, head


def _curves(found: Search) -> Iterator[dict[str, Any]]:
    """Yield a block a measure and circuit."""
    clusters, own, policy = found.clusters, found.circuits, found.chosen.policy

    def block(
        circuit: str, measure: str, sizes: Mapping[int, Tensor], values: list[Interval]
    ) -> dict[str, Any]:
        counts = [int(edges.sum()) for edges in sizes.values()]
        about = {"circuit": circuit, "policy": policy, "measure": measure}
        return about | {"asked": list(sizes), "n_edges": counts} | _columns(values)

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


def _reads(found: Search) -> Iterator[dict[str, Any]]:
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


def _overlaps(found: Search) -> Iterator[dict[str, Any]]:
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
    places = [divmod(each, len(graph.receivers)) for each in _ranked(found, scores, found.asked).tolist()]
    return Ranking(found.circuit, [(graph.senders[i], graph.receivers[j]) for i, j in places], heads)


def _ranked(found: Search, scores: Tensor, count: int) -> Tensor:
    """Return the places of the edges of largest |score| in the flattened scores, in order."""
    sizes = scores.abs().masked_fill(~found.graph.allowed, -1.0).flatten()
    best: Tensor = sizes.topk(min(count, found.graph.n_edges)).indices
    return best


def _columns(found: Sequence[Interval], name: str = "value") -> dict[str, Any]:
    """Return intervals as columns."""
    return {
        name: [each.mean for each in found],
        "ci_low": [each.low for each in found],
        "ci_high": [each.high for each in found],
        "n": [each.n for each in found],
        "n_clusters": [each.n_clusters for each in found],
    }


def _measured(name: str, found: Sequence[Interval | None]) -> dict[str, Any]:
    """Return intervals as three columns, None where nothing was measured."""
    parts = {"": "mean", "_low": "low", "_high": "high"}
    return {
        f"{name}{end}": [None if each is None else getattr(each, part) for each in found]
        for end, part in parts.items()
    }
