"""A circuit that was found and tested, as rows of the tables of circuits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sparselens.analyses.circuit.carried import curves, overlaps, reads
from sparselens.analyses.circuit.curve import (
    OWN,
    WITHOUT,
    column,
    columns,
    measured,
    node_scores,
    ranked,
    ratio,
    share,
)
from sparselens.analyses.circuit.measure import Numbers
from sparselens.analyses.circuit.plan import Circuit
from sparselens.analyses.circuit.search import Answered, Search
from sparselens.analyses.circuit.task import Case, needed
from sparselens.analyses.interval import Interval, clustered_mean
from sparselens.kernels.policy import parse as parse_policy
from sparselens.workbench.run_card import policy_card

Block = tuple[str, dict[str, Any]]
TASK = "circuit"


def record(chosen: Circuit, answered: Answered, found: Search | None) -> dict[str, Any]:
    """Return the fields of the run's record: its policy, and what was found."""
    base = None if found is None else found.base
    return {
        **policy_card(parse_policy(chosen.policy)),
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
        ("evals", {"task": TASK, "metric": list(found), **columns(list(found.values()))}),
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
        *[("circuit_curves", each) for each in curves(found)],
        *[("circuit_reads", each) for each in reads(found)],
        *[("circuit_overlaps", each) for each in overlaps(found)],
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
    whole_share = share(found.carried, f"{OWN} {found.asked}", found.clusters)
    return {name: [value] for name, value in one.items()} | columns([whole_share], "faithfulness")


def _edges(found: Search) -> dict[str, Any]:
    graph, inside = found.graph, found.circuits[found.asked]
    best = ranked(graph, found.scores, found.chosen.edges)
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
        **measured("direct", direct),
        **measured("ablated", [ablated.get(name) for name in names]),
        **measured("minimality", [lost.get(name) for name in names]),
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
