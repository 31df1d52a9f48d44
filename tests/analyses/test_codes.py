"""Codes find a head whose output differs between positive and negative prompts, and nothing where nothing does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from copy_model import copy_session
from copy_pairs import LENGTH, copy_pair

from sparselens.analyses.circuit.patch import Pair, Run
from sparselens.analyses.codes import question
from sparselens.analyses.codes.dictionary import trained
from sparselens.analyses.codes.plan import Codes, Task, in_turn, task_of
from sparselens.analyses.codes.question import ANALYSIS
from sparselens.analyses.codes.score import (
    area,
    edge_scores,
    node_scores,
    pair_counts,
    rank_correlation,
    wins,
)
from sparselens.analyses.codes.truth import effects
from sparselens.analyses.codes.write import batches, joined, projected, written
from sparselens.analyses.movers.plan import Case, sources
from sparselens.storage.reader import connect
from sparselens.storage.trace import Trace

HEADS, WIDTH, PLANTED = 30, 16, 7
SMALL = Codes(features=48, examples=8, steps=150, batch=128, sparsity=0.02)


def planted(*, differs: bool, noise: float = 0.001) -> torch.Tensor:
    """Outputs `[40 prompts, heads, width]`, 20 positive and 20 negative: each head a direction of its own and noise.

    One head writes one of four other directions on each positive prompt, if anything differs.
    """
    draw = torch.Generator().manual_seed(0)
    means = 3 * torch.nn.functional.normalize(torch.randn(HEADS, WIDTH, generator=draw), dim=-1)
    vectors = means + noise * torch.randn(40, HEADS, WIDTH, generator=draw)
    if differs:
        others = 3 * torch.nn.functional.normalize(torch.randn(4, WIDTH, generator=draw), dim=-1)
        vectors[:20, PLANTED] += others.repeat(5, 1) - means[PLANTED]
    return vectors


def ranked(vectors: torch.Tensor, trials: int = 2) -> tuple[dict[str, Any], list[Any]]:
    """Scores `[trials, heads]` by name, and each trial's counts of pairs."""
    found: dict[str, list[Any]] = {}
    pairs = []
    for trial in range(trials):
        codes = trained(vectors, SMALL, trial).codes(vectors).numpy()
        for name, values in node_scores(codes[:20], codes[20:], SMALL.features).items():
            found.setdefault(name, []).append(values)
        pairs.append(pair_counts(codes[:20], codes[20:], SMALL.features))
    return {name: np.stack(values) for name, values in found.items()}, pairs


def test_a_planted_head_is_found_by_every_score() -> None:
    scores, pairs = ranked(planted(differs=True))
    matter = np.arange(HEADS) == PLANTED
    for name, values in scores.items():
        assert wins(values, matter).mean() == 1, name
    for counts in pairs:
        assert (counts[PLANTED, ~matter] > 0).all()
        assert (counts[~matter][:, ~matter] == 0).all()


def test_where_nothing_differs_no_head_has_a_code_of_its_own() -> None:
    scores, pairs = ranked(planted(differs=False))
    for name, values in scores.items():
        found = area(wins(values, np.arange(HEADS) % 3 == 0))
        assert found.low <= 0.5 <= found.high, name
    assert not scores["unique"].any()
    assert not np.any(pairs)


def test_intervals_of_chance_scores_hold_a_half() -> None:
    draw, matter = np.random.default_rng(4), np.arange(60) < 15
    held = 0
    for _ in range(200):
        found = area(wins(draw.random((1, 60)), matter))
        held += found.low <= 0.5 <= found.high
    assert held >= 180  # 95 of 100 are expected; below 180 of 200 in one of 1,000 runs


def test_scores_of_codes_are_the_authors_sets_and_loops() -> None:
    draw = np.random.default_rng(0)
    positive, negative = draw.integers(0, 6, (2, 15, 8))
    found = node_scores(positive, negative, 6)
    edges: dict[tuple[int, int], int] = {}
    for head in range(8):
        mine, others = set(positive[:, head]), set(negative[:, head])
        assert found["unique"][head] == len(mine - others)
        assert found["share"][head] == pytest.approx(len(mine - others) / len(mine | others))
        apart = [
            abs((positive[:, head] == code).mean() - (negative[:, head] == code).mean()) for code in range(6)
        ]
        assert found["separation"][head] == pytest.approx(sum(apart) / 2)
        for other in range(8):
            pairs, seen = (
                set(zip(codes[:, head], codes[:, other], strict=True)) for codes in (positive, negative)
            )
            edges[head, other] = len(pairs - seen) if head != other else 0
    order = sorted(edges, key=lambda pair: (-edges[pair], pair))
    listed = [head for pair in order for head in pair][: 8 * 8 // 2]
    assert edge_scores(positive, negative, 6).tolist() == [listed.count(head) for head in range(8)]


def test_the_area_is_the_share_of_pairs_in_the_right_order() -> None:
    draw = np.random.default_rng(1)
    scores, matter = draw.integers(0, 5, (3, 20)), np.arange(20) < 6
    slow = [
        [(one > other) + (one == other) / 2 for one in trial[matter] for other in trial[~matter]]
        for trial in scores
    ]
    found = area(wins(scores, matter))
    assert found.mean == pytest.approx(np.mean(slow))
    assert found.low < found.mean < found.high
    perfect = area(wins(np.arange(20)[None], np.arange(20) >= 15))
    assert (perfect.mean, perfect.low, perfect.high) == (1, 1, 1)
    assert np.isnan(area(np.zeros((0, 20))).mean)


def test_rank_correlation_is_spearmans_and_zero_for_scores_without_an_order() -> None:
    from scipy.stats import spearmanr

    draw = np.random.default_rng(2)
    scores, size = draw.normal(size=(2, 12)), draw.random(12)
    expected = np.mean([spearmanr(each, size).statistic for each in scores])
    assert rank_correlation(scores, size) == pytest.approx(expected)
    assert rank_correlation(np.ones((2, 12)), size) == 0
    assert np.isnan(rank_correlation(scores, np.zeros(12)))


def test_a_head_without_an_active_feature_has_a_code_of_its_own() -> None:
    vectors = planted(differs=True)
    sae = trained(vectors, SMALL, 0)
    with torch.no_grad():
        sae.inner.b_enc.fill_(-1e6)
    assert (sae.codes(vectors) == SMALL.features).all()
    assert 0 < sae.explained < 1
    assert len(sae.examples) == SMALL.examples


def test_training_is_the_same_for_the_same_seed_and_leaves_the_generator_alone() -> None:
    vectors = planted(differs=True)
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    first = trained(vectors, SMALL, 1).codes(vectors)
    assert torch.rand(1) == before
    assert torch.equal(first, trained(vectors, SMALL, 1).codes(vectors))


@pytest.mark.parametrize(
    ("policy", "kept"), [("dense", "all"), ("a_shape(sink=1,window=4)", "all"), ("dense", "end")]
)
def test_what_is_encoded_is_what_heads_write_in_mean_or_at_the_end(
    small: Any, policy: str, kept: str
) -> None:
    prompts = small.prompts("ioi(n=3)")
    places = list(batches(prompts))
    assert sorted(place for some in places for place in some) == list(range(len(prompts)))
    found = joined(
        [written(small, [prompts[at] for at in some], policy, "blocked", kept) for some in places], places
    )
    vectors = projected(small, found["z"])
    for at in (0, 3):
        prompt = prompts[at]
        run = Run(small, Pair(prompt, (prompt,), Case(prompt, (), {}).metric), policy, "blocked")
        rows = run.clean.z[:, :, : len(prompt) - 1] if kept == "all" else run.clean.z[:, :, [len(prompt) - 2]]
        slow = (
            torch.cat(
                [
                    torch.einsum("htd,hdm->hm", rows[layer], run.ports.layers[layer].weight)
                    for layer in range(2)
                ]
            )
            / rows.shape[2]
        )
        assert torch.allclose(vectors[at], slow, atol=1e-5)
        assert found["difference"][at] == pytest.approx(run.full(), abs=1e-5)


def copy_task(count: int) -> Task:
    """Positive: the word is found and said; negative: another word, whose next one stands nowhere."""
    pairs = [copy_pair(number, other=False) for number in range(count)]
    pairs = [
        (clean, replace(corrupt, token_ids=(*corrupt.token_ids[:1], 300 + number, *corrupt.token_ids[2:])))
        for number, (clean, corrupt) in enumerate(pairs)
    ]
    truth = tuple(Case(clean, (corrupt,), sources(clean)) for clean, corrupt in pairs[:2])
    return Task(tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs), truth)


def test_the_one_head_that_answers_is_found_by_cutting_and_by_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = copy_session()
    monkeypatch.setattr(question, "task_of", lambda *_: copy_task(8))
    chosen = {
        "features": 16,
        "examples": 6,
        "trials": 2,
        "steps": 100,
        "batch": 24,
        "circuit": (1,),
        "rows": "end",
    }
    run = ANALYSIS.run(session, tmp_path / "t", **chosen)
    with connect(tmp_path / "t") as trace:
        evals = dict(trace.sql("SELECT metric, value FROM evals").rows)
        heads = trace.sql(
            "SELECT layer, head, value FROM head_scores WHERE metric = 'ablation_effect' ORDER BY value DESC"
        ).rows
    assert heads[0][:2] == (1, 0)
    assert heads[0][2] > 1
    assert [value for *_, value in heads[1:]] == pytest.approx([0, 0, 0], abs=1e-6)
    for score in ("code_unique", "code_separation", "direct_effect"):
        assert evals[f"auc_{score}_top1"] == 1
    assert evals["choice_positive"] == 1
    shown = ANALYSIS.show(Trace.open(tmp_path / "t"), run, {"top": 1})
    assert shown.rows[0]["score"] == "code_unique"
    assert any(note.startswith("by ablation_effect: L1H0") for note in shown.notes)


def test_under_a_policy_that_drops_the_word_no_head_matters_and_the_codes_are_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = copy_session()
    monkeypatch.setattr(question, "task_of", lambda *_: copy_task(8))
    run = ANALYSIS.run(
        session, tmp_path / "t", policy=f"a_shape(sink=1,window={LENGTH // 3})", features=16, examples=6, trials=2,
        steps=100, batch=24, circuit=(1,), rows="end",
    )  # fmt: skip
    with connect(tmp_path / "t") as trace:
        evals = dict(trace.sql("SELECT metric, value FROM evals").rows)
        scores = {
            (metric, layer, head): value
            for metric, layer, head, value in trace.sql(
                "SELECT metric, layer, head, value FROM head_scores"
            ).rows
        }
    assert scores["ablation_effect", 1, 0] == pytest.approx(0, abs=1e-6)
    assert scores["code_agreement", 0, 1] == 1
    assert scores["code_agreement", 1, 0] < 0.5
    assert scores["code_unique_base", 1, 0] > scores["code_unique", 1, 0]
    assert evals["choice_positive"] == 0
    assert ANALYSIS.show(Trace.open(tmp_path / "t"), run, {}).notes


def test_effects_are_the_fall_without_each_head(small: Any) -> None:
    task = task_of(small, Codes(task="ioi(n=6)", examples=4, truth=2))
    case = task.truth[0]
    found = effects(small, case, "dense", "blocked")
    run = Run(small, Pair(case.prompt, case.references, case.metric), "dense", "blocked")
    assert found["difference"] == pytest.approx(run.full(), abs=1e-6)
    assert found["effect"][5] == pytest.approx(run.full() - run.without_heads([(1, 1)]), abs=1e-6)
    assert len(found["effect"]) == len(found["direct"]) == 8


def test_a_name_takes_n_pairs_and_groups_take_turns(small: Any) -> None:
    chosen = Codes(task="ioi", n=10, truth=3)
    assert chosen.task == "ioi(n=10)"
    task = task_of(small, chosen)
    assert len(task.positive) == len(task.negative) == 10
    assert all(one.pair_id == two.pair_id for one, two in zip(task.positive, task.negative, strict=True))
    assert len({case.group for case in task.truth}) == 3
    assert [prompt.group for prompt in in_turn(task.positive)][:5] == [
        f"template{number}" for number in range(5)
    ]


def test_what_makes_no_sense_is_refused(small: Any) -> None:
    for given, said in (
        ({"task": "prose(n=2,length=64)"}, "has no clean and corrupt pairs"),
        ({"task": "ioi(n=4)"}, "8 prompts are not more than the 10 examples"),
    ):
        with pytest.raises(ValueError, match=said):
            task_of(small, Codes(**given))
    with pytest.raises(ValueError, match="counts are at least 1"):
        Codes(trials=0)
    with pytest.raises(ValueError, match="rows is one of all, end"):
        Codes(rows="last")
    with pytest.raises(ValueError, match="no head writes anything"):
        trained(torch.zeros(40, HEADS, WIDTH), SMALL, 0)
