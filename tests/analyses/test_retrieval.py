"""Retrieval scores count what Wu et al. count, leave out what did not answer, and agree with whole maps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparselens.analyses.retrieval_watch import (
    Place,
    RetrievalWatch,
    answer_place,
    found_at,
    hits,
    recall,
    wu_scores,
)
from sparselens.analyses.roles.ground import Ground
from sparselens.analyses.roles.plan import Roles
from sparselens.analyses.roles.plan import planned as plan_of
from sparselens.analyses.roles.question import ANALYSIS
from sparselens.analyses.roles.retrieval import Answered, on_needles, one_run, scores_of
from sparselens.storage.reader import connect
from sparselens.storage.trace import Trace
from sparselens.workbench.generation import walked
from sparselens.workbench.models import load
from sparselens.workbench.progress import Progress

NEEDLES = "needles(length=200,n=8,seed=3)"


@pytest.fixture(scope="module")
def needles(small: Any) -> list[Any]:
    found: list[Any] = small.prompts(NEEDLES)
    return found


def test_both_forms_of_the_score_differ_where_a_token_is_repeated() -> None:
    """Needle [5, 6, 7, 7], hits on 5, 7, 7: 3 of 4 tokens by the code, 2 of 3 different ones by the paper."""
    answer, produced = [5, 6, 7, 7], [5, 6, 7, 7]
    hit = torch.tensor([True, False, True, True])[:, None, None]
    total, different = wu_scores(hit, answer, produced)
    assert total.item() == 0.75
    assert different.item() == pytest.approx(2 / 3)


def test_a_hit_is_the_token_that_is_produced_not_the_one_that_is_fed() -> None:
    ids, produced = [9, 5, 6, 9, 1], [5, 6]  # the answer 5 6 stands at 1–2
    copies = torch.tensor([[[1]], [[2]]])
    echoes = torch.tensor([[[4]], [[1]]])  # reads what was just fed
    assert hits(copies, [1, 2], ids, produced).flatten().tolist() == [True, True]
    assert hits(echoes, [1, 2], ids, produced).flatten().tolist() == [False, False]
    assert (
        hits(torch.tensor([[[5]], [[6]]]), [1, 2], ids, produced).sum() == 0
    )  # produced tokens are no needle


def test_the_answers_place_is_found_token_by_token_else_as_a_bag(needles: list[Any]) -> None:
    prompt = needles[0]
    place = answer_place(prompt)
    assert place is not None
    assert place.exact
    answer = prompt.answer_ids
    assert tuple(prompt.token_ids[at] for at in place.positions[: len(answer)]) == answer
    start, stop = prompt.spans["needle"]
    assert all(start <= at < stop for at in place.positions)
    words = list(prompt.token_ids)
    first = place.positions[0]
    mixed = replace(prompt, token_ids=tuple(words), answer_ids=tuple(reversed(answer)))
    found = answer_place(mixed)
    assert found == Place(tuple(range(first, first + len(answer))), exact=False)
    assert answer_place(replace(prompt, answer_ids=(2999,) * 3)) is None


def test_an_answer_is_found_and_recalled() -> None:
    assert found_at([3, 4], [1, 3, 4, 2]) == 1
    assert found_at([3, 4], [3, 1, 4]) is None
    assert recall([3, 3, 4], [3, 4]) == pytest.approx(2 / 3)
    assert recall([3, 4], [4, 3, 9]) == 1


def eager_maps(session: Any, ids: list[int]) -> Tensor:
    """All maps `[layers, heads, T, T]` of transformers' own attention."""
    kind = session.model.config._attn_implementation
    session.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            found = session.model(input_ids=torch.tensor([ids]), output_attentions=True, use_cache=False)
    finally:
        session.model.set_attn_implementation(kind)
    return torch.cat(found.attentions)


def test_scores_are_those_of_whole_maps_walked_in_loops(small: Any, needles: list[Any]) -> None:
    for prompt in needles[:4]:
        place = answer_place(prompt)
        assert place is not None
        question = list(prompt.token_ids[: len(prompt) - len(prompt.answer_ids)])
        produced = [7, *prompt.answer_ids, 8]
        watch = RetrievalWatch(torch.tensor(place.positions))
        with small.under("dense", observers=[watch]):
            walked(small, torch.tensor([question]), forced=produced)
        run = Answered(prompt, place, tuple(produced))
        found = scores_of(run, watch)
        maps = eager_maps(small, [*question, *produced])
        answer = prompt.answer_ids
        expected = np.zeros((2, 4))
        mass = np.zeros((2, 4))
        for step, token in enumerate(produced):
            for layer in range(2):
                for head in range(4):
                    row = maps[layer, head, len(question) - 1 + step]
                    key = int(row.argmax())
                    expected[layer, head] += key in place.positions and ([*question, *produced][key] == token)
                    if 1 <= step <= len(answer):
                        mass[layer, head] += float(row[list(place.positions)].sum()) / len(answer)
        assert found["retrieval"].tolist() == pytest.approx((expected / len(answer)).flatten().tolist())
        assert found["needle_mass"].tolist() == pytest.approx(mass.flatten().tolist(), abs=1e-5)
        assert found["needle_kept"].tolist() == [1.0] * 8


def test_what_a_policy_dropped_is_not_read_and_not_kept(small: Any, needles: list[Any]) -> None:
    prompt = needles[0]  # depth 0.1: far from the answer
    place = answer_place(prompt)
    assert place is not None
    found = one_run(small, prompt, place, "dense", "sliding_window(window=8)", "blocked")
    assert found["needle_kept"].max() == 0
    assert found["needle_mass"].max() == 0
    assert found["retrieval"].max() == 0
    half = one_run(
        small, prompt, place, "dense", "per_head(default=sliding_window(window=8),full=[L1H2])", "blocked"
    )
    assert half["needle_kept"].tolist() == [0.0] * 6 + [1.0, 0.0]
    assert half["produced"].tolist() == found["produced"].tolist()  # the base's answer is forced on both


def test_runs_that_did_not_answer_are_left_out_and_counted(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {"parts": "needles", "needles": 8, "needle_length": 200}
    run_id = ANALYSIS.run(small, tmp_path / "none", **arguments)
    with connect(tmp_path / "none") as trace:
        assert trace.sql("SELECT count(*) FROM head_scores").rows == [(0,)]
    shown = ANALYSIS.show(Trace.open(tmp_path / "none"), run_id, {})
    assert "needles: the base answered 0 of 8 runs: no retrieval score" in " ".join(shown.notes)

    from sparselens.analyses.roles import retrieval as role_retrieval

    def answers(session: Any, prompt: Any, place: Any, *rest: Any) -> dict[str, Any]:
        found = one_run(session, prompt, place, *rest)
        right = prompt.group in (
            "passkey",
            "pet",
        )  # two of eight families answer, with a score of 1 in every head
        produced = np.array(prompt.answer_ids if right else [9, 9])
        return found | {"produced": produced, "retrieval": np.full(8, float(right))}

    monkeypatch.setattr(role_retrieval, "one_run", answers)
    ANALYSIS.run(small, tmp_path / "some", **arguments)
    with connect(tmp_path / "some") as trace:
        rows = trace.sql(
            "SELECT value, n, n_clusters, params->>'n_runs', params->>'n_answered' FROM head_scores"
            " WHERE metric = 'retrieval'"
        ).rows
    assert rows == [(1.0, 2, 2, "8", "2")] * 8


def test_the_order_of_the_runs_does_not_matter(small: Any) -> None:
    chosen = Roles(parts=("needles",), needles=4, needle_length=200)
    plan = plan_of(small, chosen)
    backwards = replace(plan, needles=replace(plan.needles, prompts=plan.needles.prompts[::-1]))
    numbers = []
    for each in (plan, backwards):
        with Progress(0, 0, enabled=False) as bar:
            ground = Ground(small, chosen, each, "blocked", bar)
            on_needles(ground)
        numbers.append({key.split()[-1]: value for key, value in ground.ledger._memory.items()})
    for name, found in numbers[0].items():
        assert all(np.array_equal(found[key], numbers[1][name][key], equal_nan=True) for key in found)


@pytest.mark.model
def test_the_default_model_retrieves_with_few_heads(tmp_path: Path) -> None:
    session = load("smollm2-135m", progress=False)
    ANALYSIS.run(session, tmp_path / "t", parts="needles", needles=8, needle_length=256)
    with connect(tmp_path / "t") as trace:
        rows = trace.sql(
            "SELECT 'L' || layer || 'H' || head, value FROM head_scores WHERE metric = 'retrieval'"
            " ORDER BY value DESC"
        ).rows
        answered = trace.sql("SELECT max(n) FROM head_scores WHERE metric = 'retrieval'").rows[0][0]
    assert answered >= 6
    assert rows[0][0] == "L18H6"
    assert rows[0][1] > 0.8
    assert sum(value > 0.1 for _, value in rows) < 40  # of 270
    assert np.median([value for _, value in rows]) == 0
