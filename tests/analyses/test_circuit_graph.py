"""The graph of a model: its nodes, its edges, and sets of edges."""

from __future__ import annotations

import pytest
import torch

from sparselens.analyses.circuit.graph import Graph


@pytest.fixture
def graph() -> Graph:
    return Graph(2, 2, 1)


def _edges(graph: Graph, *pairs: tuple[str, str]) -> torch.Tensor:
    found = torch.zeros_like(graph.allowed)
    for pair in pairs:
        found[graph.edge(*pair)] = True
    return found


def test_nodes_are_named_in_the_order_of_the_layers(graph: Graph) -> None:
    assert graph.senders == ("input", "L0H0", "L0H1", "M0", "L1H0", "L1H1", "M1")
    assert graph.receivers == (
        "L0H0.q", "L0H1.q", "L0G0.k", "L0G0.v", "M0.in",
        "L1H0.q", "L1H1.q", "L1G0.k", "L1G0.v", "M1.in", "logits",
    )  # fmt: skip


def test_slices_and_names_agree() -> None:
    graph = Graph(3, 4, 2)
    for layer in range(3):
        heads, reads = graph.senders[graph.writing(layer)], graph.receivers[graph.reading(layer)]
        assert heads == tuple(f"L{layer}H{head}" for head in range(4))
        assert reads[:4] == tuple(f"L{layer}H{head}.q" for head in range(4))
        assert reads[4:] == tuple(f"L{layer}G{group}.{kind}" for kind in "kv" for group in range(2))
        assert graph.senders[graph.mlp_writing(layer)] == f"M{layer}"
        assert graph.receivers[graph.mlp_reading(layer)] == f"M{layer}.in"
    assert graph.receivers[graph.logits] == "logits"


def test_an_edge_goes_from_earlier_to_later(graph: Graph) -> None:
    place = {name: number for number, name in enumerate(("input", "attention 0", "M0", "attention 1", "M1"))}

    def when(name: str) -> int:
        node = name.split(".", maxsplit=1)[0]
        return place[node] if node in place else place[f"attention {node[1]}"]

    for i, sender in enumerate(graph.senders):
        for j, receiver in enumerate(graph.receivers):
            later = receiver == "logits" or when(sender) < when(receiver)
            assert bool(graph.allowed[i, j]) == later, (sender, receiver)


def test_the_default_model_has_70651_edges() -> None:
    graph = Graph(30, 9, 3)
    assert graph.allowed.shape == (301, 481)
    by_hand = sum(15 * (1 + 10 * layer) + 10 + 10 * layer for layer in range(30)) + 301
    assert graph.n_edges == by_hand == 70651


def test_an_edge_that_is_not_there_is_refused(graph: Graph) -> None:
    with pytest.raises(ValueError, match="no sender 'L9H9'"):
        graph.edge("L9H9", "logits")
    with pytest.raises(ValueError, match="no receiver 'M0'"):
        graph.edge("input", "M0")
    with pytest.raises(ValueError, match="M1 does not come before L1H0"):
        graph.edge("M1", "L1H0.q")


def test_pruning_keeps_what_lies_on_a_way_from_input_to_logits(graph: Graph) -> None:
    way = _edges(graph, ("input", "L0G0.v"), ("L0H1", "M1.in"), ("M1", "logits"))
    unread = _edges(graph, ("input", "L1H0.q"))
    unfed = _edges(graph, ("M0", "logits"))
    chain = _edges(graph, ("L0H0", "L1H1.q"))  # L0H0 is fed by the group's v, L1H1 is read by nobody
    assert torch.equal(graph.pruned(way | unread | unfed | chain), way)
    assert torch.equal(graph.pruned(graph.allowed), graph.allowed)
    assert not graph.pruned(_edges(graph, ("input", "L0H0.q"))).any()


def test_a_shared_key_stays_while_any_head_of_its_group_is_read(graph: Graph) -> None:
    key = _edges(graph, ("input", "L0G0.k"))
    assert torch.equal(
        graph.pruned(key | _edges(graph, ("L0H1", "logits"))), key | _edges(graph, ("L0H1", "logits"))
    )
    assert not graph.pruned(key).any()


def test_another_heads_query_does_not_feed_a_head(graph: Graph) -> None:
    assert not graph.pruned(_edges(graph, ("input", "L0H0.q"), ("L0H1", "logits"))).any()


def test_best_takes_the_largest_sizes_and_no_edge_that_is_not_there(graph: Graph) -> None:
    torch.manual_seed(0)
    scores = torch.randn(graph.allowed.shape)
    scores[~graph.allowed] = 100
    assert torch.equal(graph.best(scores, graph.n_edges), graph.allowed)
    sizes = scores.abs()[graph.allowed].sort(descending=True).values
    kept = graph.best(scores, 12)
    assert torch.equal(kept, graph.pruned((scores.abs() >= sizes[11]) & graph.allowed))
    with pytest.raises(ValueError, match=f"has {graph.n_edges} edges: {graph.n_edges + 1} cannot be taken"):
        graph.best(scores, graph.n_edges + 1)


def test_greedy_grows_from_the_logits(graph: Graph) -> None:
    torch.manual_seed(0)
    scores = torch.rand(graph.allowed.shape)
    scores[graph.edge("M1", "logits")] = 2
    scores[graph.edge("input", "M1.in")] = 3
    scores[graph.edge("input", "L0H0.q")] = 9  # into a node that nobody reads yet
    assert torch.equal(graph.greedy(scores, 2), _edges(graph, ("M1", "logits"), ("input", "M1.in")))
    assert torch.equal(graph.greedy(scores, graph.n_edges), graph.allowed)


def test_heads_of_edges_are_those_that_send(graph: Graph) -> None:
    edges = _edges(graph, ("input", "L1H0.q"), ("L1H1", "logits"), ("L0H0", "M0.in"), ("M0", "logits"))
    assert graph.heads_of(edges) == [(0, 0), (1, 1)]


def test_other_shapes_and_types_are_refused(graph: Graph) -> None:
    with pytest.raises(ValueError, match=r"edges are bool \[7, 11\]"):
        graph.checked(torch.ones(3, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="float32"):
        graph.checked(graph.allowed.float())
    assert torch.equal(graph.checked(torch.ones_like(graph.allowed)), graph.allowed)
