"""Heads that are given by name are what is tried: no ranking, random heads of the same layers beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from copy_model import copy_prompts, copy_session

from sparselens.analyses.analysis import parse
from sparselens.analyses.cause.ablate import ANALYSIS as ABLATE
from sparselens.analyses.cause.plan import Trial, folds, planned
from sparselens.analyses.cause.restore import ANALYSIS, Restore
from sparselens.storage.reader import connect
from sparselens.storage.trace import Trace

POLICY = "a_shape(sink=1,window=6)"
GIVEN: dict[str, Any] = {
    "policy": POLICY,
    "orders": "given",
    "matched": "given",
    "ranked_on": "no-such-file.jsonl",
    "draws": 2,
    "check": 0,
}


@pytest.fixture(scope="module")
def copying() -> Any:
    return copy_session()


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Words out of the window's reach; the model answers by L1H0 alone."""
    path = tmp_path_factory.mktemp("words") / "words.jsonl"
    rows = [
        {
            "id": prompt.name,
            "token_ids": list(prompt.token_ids[: -len(prompt.answer_ids)]),
            "answer": list(prompt.answer_ids),
            **({"group": prompt.group} if number else {}),
        }
        for number, prompt in enumerate(copy_prompts([(0, 20), (4, 30), (9, 12), (14, 25)]))
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def closed(path: Path, metric: str = "gap_closed") -> dict[Any, float]:
    """The metric of every set, by order and draw."""
    with connect(path) as trace:
        rows = trace.sql(
            "SELECT order_by, draw, value FROM interventions WHERE fold IS NULL AND metric = $metric",
            {"metric": metric},
        ).rows
    return {(order, draw): value for order, draw, value in rows}


def test_the_head_that_copies_gives_the_answer_back_and_its_neighbour_does_not(
    copying: Any, words: str, tmp_path: Path
) -> None:
    """L1H0 does the copying: given back it closes the whole gap; the only random head of its layer, L1H1, none."""
    run_id = ANALYSIS.run(copying, tmp_path / "t", prompts=words, heads="L1H0", **GIVEN)
    found = closed(tmp_path / "t")
    assert found["given", None] == pytest.approx(1.0, abs=1e-4)
    assert found["random", 0] == found["random", 1] == found["random", None] == pytest.approx(0.0, abs=1e-6)
    assert closed(tmp_path / "t", "gap_closed_over_random")["given", None] == pytest.approx(1.0, abs=1e-4)
    with connect(tmp_path / "t") as trace:
        rows = trace.sql(
            "SELECT DISTINCT order_by, heads FROM interventions WHERE order_by IS NOT NULL AND draw IS NOT NULL"
            " OR order_by = 'given'"
        ).rows
        assert sorted(map(tuple, rows)) == [("given", ["L1H0"]), ("random", ["L1H1"])]
        assert trace.sql("SELECT count(*) FROM head_scores").rows == [(0,)]
    notes = " ".join(ANALYSIS.show(Trace.open(tmp_path / "t"), run_id, {}).notes)
    assert "by given, fold 0: L1H0" in notes
    assert "ranked on" not in notes


def test_other_heads_give_nothing_back_and_cutting_them_breaks_nothing(
    copying: Any, words: str, tmp_path: Path
) -> None:
    ANALYSIS.run(copying, tmp_path / "t", prompts=words, **{**GIVEN, "draws": 0}, heads=["L0H1", "L1H1"])
    assert closed(tmp_path / "t")["given", None] == pytest.approx(0.0, abs=1e-6)
    for heads, broken in ((["L0H0", "L1H1"], False), (["L1H0"], True)):
        path = tmp_path / heads[0]
        ABLATE.run(copying, path, prompts=words, kind="zero", **{**GIVEN, "draws": 0}, heads=heads)
        rise = closed(path, "nll_rise")["given", None]
        assert rise > 1 if broken else rise == pytest.approx(0.0, abs=1e-6)


def test_given_heads_stand_beside_ranked_ones(small: Any, tmp_path: Path) -> None:
    """The same heads under both orders have the same outcome, and every fold tries the given ones."""
    size: dict[str, Any] = {
        "policy": POLICY,
        "prompts": "needles(length=160,n=4,seed=1)",
        "ranked_on": "needles(length=160,n=4,seed=2)",
        "draws": 1,
        "check": 0,
    }
    every = [f"L{layer}H{head}" for layer in range(2) for head in range(4)]
    ANALYSIS.run(
        small, tmp_path / "t", **{**size, "draws": 0}, heads=every, orders=["write_error", "given"],
        matched="given", counts=8, random_at=8,
    )  # fmt: skip
    found = closed(tmp_path / "t", "answer_nll")
    assert found["given", None] == found["write_error", None]
    with connect(tmp_path / "t") as trace:
        rows = trace.sql("SELECT DISTINCT fold, heads FROM interventions WHERE order_by = 'given'").rows
    assert sorted((fold is None, fold, heads) for fold, heads in rows if fold is not None) == [
        (False, 0, every),
        (False, 1, every),
    ]
    trials = planned(Restore(**size, heads=("L0H1",), orders=("write_error", "given"), matched=("given",)))
    assert [trial.n_heads for trial in trials if trial.order_by in ("given", "random")] == [1, 1]


def test_given_heads_alone_need_no_groups_and_no_ranking_prompts(copying: Any, words: str) -> None:
    chosen = Restore(prompts=words, heads=("L1H0", "L0H1", "L1H0"), **_listed(GIVEN))
    assert (chosen.heads, chosen.counts, chosen.random_at) == (("L0H1", "L1H0"), (2,), (2,))
    (fold,) = folds(copying, chosen)
    assert len(fold.tested) == 4
    assert not fold.ranking
    assert Trial("run_dense", 2, "given") in planned(chosen)


def test_the_command_line_writes_given_heads_as_names() -> None:
    analysis, arguments = parse("restore(heads=[L18H6,L20H1],orders=[given],matched=[given],check=0)")
    settled = analysis.settle(arguments)
    assert (settled.heads, settled.orders, settled.counts) == (("L18H6", "L20H1"), ("given",), (2,))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": "L2H0"}, "L2H0 is no head of .*: it has 2 layers of 2 heads, counted from 0"),
        ({"heads": "L0H2"}, "L0H2 is no head of"),
        ({"heads": "18.6"}, "heads are written L18H6, not '18.6'"),
        ({}, "heads and the order given go together"),
        ({"heads": "L1H0", "orders": "write_error", "matched": "write_error"}, "heads and the order given"),
        ({"heads": ["L0H0", "L0H1", "L1H0", "L1H1"]}, "4 random heads beside 4 ranked ones: too many"),
    ],
)
def test_heads_that_cannot_be_given_are_refused(
    copying: Any, words: str, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ANALYSIS.run(copying, tmp_path / "t", **{**GIVEN, "prompts": words, **arguments})


def _listed(arguments: dict[str, Any]) -> dict[str, Any]:
    return {**arguments, "orders": (arguments["orders"],), "matched": (arguments["matched"],)}
