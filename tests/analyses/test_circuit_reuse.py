"""Overlap of circuits: counted against chance, over all that a trace has, and again when it has more."""

from __future__ import annotations

import itertools
from math import comb
from pathlib import Path
from typing import Any

import pytest

from sparselens.analyses.circuit.overlap import Ranking, compared, overlap, rank_correlation
from sparselens.analyses.circuit.reuse import ANALYSIS
from sparselens.storage.reader import connect
from sparselens.storage.trace import Trace
from sparselens.storage.writer import RunWriter

GRAPH = 40
HEADS = 8


def circuit(path: Path, name: str, order: list[int], *, task: str = "ioi", weights: str = "w") -> None:
    """Write a circuit whose edges are numbered, the best first, and whose heads have the scores of their order."""
    meta = {
        "kind": "analysis",
        "name": "circuit",
        "args": {"of": name},
        "weight_hash": weights,
        "dtype": "float32",
    }
    with RunWriter.start(Trace.create(path), meta=meta) as run:
        nan = float("nan")
        about: dict[str, Any] = {
            "circuit": name, "task": task, "policy": "dense", "model": "m", "prompts": f"{task}()", "metric": "x",
            "asked": 10, "n_edges": 10, "n_heads": 2, "n_mlps": 0, "all_edges": GRAPH, "stored": len(order),
            "unstored": 0.0, "faithfulness": 1.0, "ci_low": nan, "ci_high": nan, "sufficient": True, "whole": 1.0,
            "empty": 0.0, "accuracy": 1.0, "chance": 0.5, "n_found": 1, "n": 1, "n_clusters": 1,
        }  # fmt: skip
        blank = dict.fromkeys(
            [f"{each}{end}" for each in ("direct", "ablated", "minimality") for end in ("", "_low", "_high")],
            nan,
        )
        with run.part([]) as part:
            part.add("circuits", {key: [value] for key, value in about.items()})
            part.add(
                "circuit_edges",
                {
                    "circuit": name, "sender": [f"L0H{edge}" for edge in order], "receiver": "logits",
                    "score": [1.0 / place for place in range(1, len(order) + 1)],
                    "rank": list(range(1, len(order) + 1)), "in_circuit": True,
                },
            )  # fmt: skip
            part.add(
                "circuit_nodes",
                {
                    "circuit": name, "node": [f"L0H{head}" for head in range(HEADS)], "layer": 0,
                    "head": list(range(HEADS)), "score": [float(order.index(head)) for head in range(HEADS)],
                    "in_circuit": False, **blank, "direct": 0.0,
                },
            )  # fmt: skip
        run.finish({})


def test_overlap_counts_against_the_hypergeometric_expectation() -> None:
    found = overlap({1, 2, 3}, {3, 4, 5}, 10)
    assert (found["shared"], found["jaccard"], found["expected"]) == (1, 1 / 5, pytest.approx(0.9))
    draws = [len(set(each) & {1, 2, 3}) for each in itertools.combinations(range(10), 3)]
    assert found["expected"] == pytest.approx(sum(draws) / comb(10, 3))
    assert found["p"] == pytest.approx(sum(each >= 1 for each in draws) / comb(10, 3))
    assert found["expected_jaccard"] == pytest.approx(0.9 / 5.1)


def test_equal_sets_share_everything_and_disjoint_ones_nothing() -> None:
    assert overlap({1, 2}, {2, 1}, 100)["jaccard"] == 1
    nothing = overlap({1, 2}, {3, 4}, 100)
    assert (nothing["jaccard"], nothing["p"]) == (0, 1)
    with pytest.raises(ValueError, match="not drawn from 3"):
        overlap(range(4), range(2), 3)


def test_heads_are_ranked_by_size_and_correlated_with_their_signs() -> None:
    first = Ranking("a", ["x"], [-3.0, 0.1, 2.0, 0.0])
    second = Ranking("b", ["x"], [3.0, 0.2, -2.0, 0.0])
    found = compared(first, second, edges=1, heads=2, among=10)
    assert found["shared"] == [1, 2]
    assert found["spearman"][0] != found["spearman"][0]
    assert found["spearman"][1] == pytest.approx(-0.8)
    assert rank_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) != 1


def test_every_pair_of_one_model_is_compared_and_a_new_circuit_is_not_left_out(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    first = list(range(20))
    circuit(path, "one", first)
    with pytest.raises(ValueError, match="this trace has 1: run `sparselens analyse circuit`"):
        ANALYSIS.run(None, path)
    circuit(path, "two", [*range(10, 20), *range(10)], task="copying")
    circuit(path, "elsewhere", first, weights="other")
    run = ANALYSIS.run(None, path, edges=10, heads=2)
    assert ANALYSIS.run(None, path, edges=10, heads=2) == run
    with connect(path) as connection:
        rows = connection.sql("SELECT * FROM circuit_overlaps ORDER BY level").arrow().to_pylist()
    assert [(row["level"], row["circuit_a"], row["circuit_b"]) for row in rows] == [
        ("edges", "two", "one"),
        ("heads", "two", "one"),
    ]
    assert (rows[0]["shared"], rows[0]["among"], rows[0]["expected"]) == (0, GRAPH, 10 * 10 / GRAPH)
    circuit(path, "three", first, task="greater_than")
    after = ANALYSIS.run(None, path, edges=10, heads=2)
    assert after != run
    shown = ANALYSIS.show(Trace.open(path), after, {})
    assert len(shown.rows) == 3 * 2
    assert shown.rows[0]["jaccard"] == 1
    circuit(path, "newer", first)  # the same task and policy as "one", searched again: it takes its place
    latest = Trace.open(path).run(ANALYSIS.run(None, path, edges=10, heads=2))
    assert latest.record.args["circuits"] == ["elsewhere", "newer", "three", "two"]
    assert any("heads among the best 2" in note for note in shown.notes)


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    circuit(path, "one", list(range(20)))
    circuit(path, "two", list(range(20)), weights="other")
    with pytest.raises(ValueError, match="no circuit 'three'"):
        ANALYSIS.run(None, path, circuits=("one", "three"))
    with pytest.raises(ValueError, match="has 20 edges stored, 200 are compared"):
        ANALYSIS.run(None, path)
    with pytest.raises(ValueError, match="no two of these circuits are of one model"):
        ANALYSIS.run(None, path, edges=5)
