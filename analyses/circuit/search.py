"""Finding a circuit on one half of the prompts and testing it on the other: the passes, in their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparselens.analyses.analysis import model_card
from sparselens.analyses.circuit.curve import circuits, knockouts, node_scores, passes, sufficient
from sparselens.analyses.circuit.graph import Graph
from sparselens.analyses.circuit.measure import Measure, Numbers
from sparselens.analyses.circuit.overlap import Ranking
from sparselens.analyses.circuit.plan import Circuit
from sparselens.analyses.circuit.task import Case, halves, needed
from sparselens.kernels.head import Head
from sparselens.storage.reader import connect
from sparselens.storage.trace import Trace

_EDGES = "SELECT sender, receiver FROM circuit_edges_history WHERE analysis_id = $of ORDER BY rank"
_ABOUT = "SELECT circuit, asked FROM circuits_history WHERE analysis_id = $of"
_NODES = """
SELECT score FROM circuit_nodes_history WHERE analysis_id = $of AND head IS NOT NULL ORDER BY layer, head
"""
_SCORES = """
SELECT prompt_id, metric, value FROM prompt_scores_history
WHERE analysis_id = $of AND metric IN ('whole', 'empty')
"""


@dataclass(frozen=True, eq=False)
class Answered:
    """How the base does the task: accuracy on clean and on reference prompts, and whether that is enough."""

    accuracy: float
    chance: float

    @staticmethod
    def of(found: Sequence[Numbers], every: Sequence[Case]) -> Answered:
        """Chance is what guessing gets, or what the reference prompts get if that is more."""
        guessed = max(every[0].chance, float(np.mean([bool(each["reference_right"]) for each in found])))
        return Answered(float(np.mean([bool(each["right"]) for each in found])), guessed)

    @property
    def applicable(self) -> bool:
        """Whether there is a behaviour to find a circuit of."""
        return self.accuracy >= needed(self.chance)


@dataclass(frozen=True, eq=False)
class Base:
    """The base's answer to the same question: its circuits by size, and the metric of each test prompt."""

    run_id: str
    circuit: str
    asked: int
    circuits: Mapping[int, Tensor]
    ranking: Ranking
    whole: Mapping[str, float]
    empty: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Search:
    """A circuit that was found and tested: everything that rows are made of."""

    chosen: Circuit
    circuit: str
    model: str
    graph: Graph
    every: Sequence[Case]
    searched: Sequence[Case]
    tested: Sequence[Case]
    answers: Sequence[Numbers]
    base_answers: Sequence[Numbers]
    answered: Answered
    scores: Tensor
    scores_of_halves: tuple[Tensor, Tensor] | None
    circuits: Mapping[int, Tensor]
    asked: int
    sufficient: bool
    heads: Sequence[Head]
    carried: Sequence[Numbers]
    knocked: Sequence[Numbers]
    edges_of: Mapping[str, Tensor]
    base: Base | None

    @property
    def clusters(self) -> list[str]:
        """The cluster of every test prompt."""
        return [case.cluster for case in self.tested]


def search(
    measure: Measure,
    every: Sequence[Case],
    answers: tuple[Sequence[Numbers], Sequence[Numbers]],
    answered: Answered,
    base: Base | None,
) -> Search:
    """Return the circuit of a policy; `answers` are those under it and those under the base."""
    chosen, graph = measure.chosen, Graph.of(measure.session)
    searched, tested = halves(every)
    scored = [measure.scores(case) for case in searched]
    scores = _mean(scored)
    own = circuits(graph, scores, chosen.sizes)
    heads = _strongest(graph, scored, scores, chosen.heads)
    sets = passes(graph, own, {} if base is None else base.circuits)
    carried = [measure.carried(case, "curve", sets, heads) for case in tested]
    asked, enough = sufficient(carried, list(own), [case.cluster for case in tested], chosen.faithful)
    out = knockouts(graph, own[asked], scores, chosen.knockouts, chosen.seed)
    knocked = [measure.carried(case, f"knockouts {asked}", out, ()) for case in tested]
    return Search(
        chosen=chosen,
        circuit=chosen.circuit(model_card(measure.session)),
        model=measure.session.provenance.name,
        graph=graph,
        every=every,
        searched=searched,
        tested=tested,
        answers=answers[0],
        base_answers=answers[1],
        answered=answered,
        scores=scores,
        scores_of_halves=_halved(scored, searched),
        circuits=own,
        asked=asked,
        sufficient=enough,
        heads=heads,
        carried=carried,
        knocked=knocked,
        edges_of=sets | out,
        base=base,
    )


def _mean(scored: Sequence[Numbers]) -> Tensor:
    return torch.from_numpy(np.mean([each["scores"] for each in scored], axis=0))


def _halved(scored: Sequence[Numbers], searched: Sequence[Case]) -> tuple[Tensor, Tensor] | None:
    """Return the mean scores of every other cluster, and of the others; None where there is but one."""
    names = list(dict.fromkeys(case.cluster for case in searched))
    first = set(names[::2])
    parts: tuple[list[Numbers], list[Numbers]] = ([], [])
    for case, numbers in zip(searched, scored, strict=True):
        parts[case.cluster not in first].append(numbers)
    return (_mean(parts[0]), _mean(parts[1])) if parts[1] else None


def _strongest(graph: Graph, scored: Sequence[Numbers], scores: Tensor, count: int) -> list[Head]:
    """Return the heads that write most into the logit difference themselves, and those of largest |score|, in order."""
    direct = torch.from_numpy(np.mean([each["direct"] for each in scored], axis=0))
    places = [(layer, head) for layer in range(graph.layers) for head in range(graph.heads)]
    chosen: set[Head] = set()
    for numbers in (direct, node_scores(scores)):
        sizes = torch.cat([numbers[graph.writing(layer)] for layer in range(graph.layers)]).abs()
        chosen |= {places[place] for place in sizes.topk(min(count, len(places))).indices.tolist()}
    return sorted(chosen)


def base_answer(trace: Trace, run_id: str, chosen: Circuit, graph: Graph) -> Base:
    """Return the base's circuits and metrics from the rows of its own analysis run."""
    with connect(trace.path) as connection:

        def asked(text: str) -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = (
                connection.sql(text, {"of": run_id}, max_rows=None).arrow().to_pylist()
            )
            return found

        edges, about, scores = asked(_EDGES), asked(_ABOUT)[0], asked(_SCORES)
        nodes = [float(row["score"]) for row in asked(_NODES)]
    ranking = Ranking(about["circuit"], [(row["sender"], row["receiver"]) for row in edges], nodes)
    places = [graph.edge(row["sender"], row["receiver"]) for row in edges]
    kept: dict[int, Tensor] = {}
    for size in dict.fromkeys(min(each, graph.n_edges) for each in chosen.sizes):
        taken = torch.zeros_like(graph.allowed)
        taken[tuple(torch.tensor(places[:size]).T)] = True
        kept[size] = graph.pruned(taken)
    metric = {
        name: {row["prompt_id"]: float(row["value"]) for row in scores if row["metric"] == name}
        for name in ("whole", "empty")
    }
    return Base(
        run_id, about["circuit"], int(about["asked"]), kept, ranking, metric["whole"], metric["empty"]
    )
