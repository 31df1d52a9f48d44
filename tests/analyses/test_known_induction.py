"""An induction circuit grown in a toy is found by the role scores, and what only looks like one is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toy_induction import FIXED_GAP, FIXED_HALF, Repeated, induction_toy, repeated
from toy_measure import accuracy, attention_at, in_layer, means, predicted, prompts_of, zeroed
from toy_training import Toy

from sparselens.analyses.roles.labels import labels
from sparselens.analyses.roles.question import ANALYSIS
from sparselens.analyses.roles.watch import TargetWatch
from sparselens.storage.reader import connect

ONLY = {"sequences": 16, "parts": ("repeats",)}  # prose is no text to a toy
GAPS = (0, 5, 10, 20)


@pytest.fixture(
    scope="module", params=[5, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (0, 1, 2, 4))]
)
def toy(request: pytest.FixtureRequest) -> Toy:
    return induction_toy(request.param)


@pytest.fixture(scope="module")
def held_out() -> Repeated:
    return repeated(512, torch.Generator().manual_seed(99))


def roles(session: Any, path: Path, **arguments: Any) -> dict[str, dict[str, float]]:
    """Scores of each head by metric, from the analysis' own rows."""
    run_id = ANALYSIS.run(session, path, **ONLY, **arguments)
    with connect(path) as trace:
        rows = trace.sql(
            "SELECT 'L' || layer || 'H' || head, metric, value FROM head_scores WHERE analysis_id = $id",
            {"id": run_id},
            max_rows=None,
        ).rows
    found: dict[str, dict[str, float]] = {}
    for head, metric, value in rows:
        found.setdefault(head, {})[metric] = value
    return found


def test_the_toy_has_learned_its_task(toy: Toy, held_out: Repeated) -> None:
    assert accuracy(predicted(toy.session, held_out.ids), held_out.labels) >= 0.97


def test_layer_0_reads_the_token_before_and_layer_1_inducts(toy: Toy, held_out: Repeated) -> None:
    found = means(toy.session, held_out.ids[:128], TargetWatch())
    previous, duplicate, induction = (
        found[name][:, 0] for name in ("previous_token", "duplicate_token", "induction")
    )
    assert 0.55 <= previous[0] <= 0.8
    assert previous[0] > previous[1]
    assert induction[1] >= 0.88
    assert induction[0] <= 0.06
    assert duplicate.max() <= 0.05


def test_the_roles_analysis_names_both_heads_at_every_gap(toy: Toy, tmp_path: Path) -> None:
    heads = roles(toy.session, tmp_path / "t", half=12, gaps=GAPS)
    assert min(heads["L1H0"][f"induction_gap{gap}"] for gap in GAPS) >= 0.85
    assert max(heads["L0H0"][f"induction_gap{gap}"] for gap in GAPS) <= 0.06
    assert labels(heads["L0H0"]) == ["previous-token head"]
    assert labels(heads["L1H0"]) == ["induction head"]


@pytest.mark.parametrize("layer", [0, 1])
def test_without_either_head_nothing_is_left(toy: Toy, held_out: Repeated, layer: int) -> None:
    ids = held_out.ids
    without = predicted(toy.session, ids, ablate=[(layer, 0)])
    assert accuracy(without, held_out.labels) <= 0.08
    with zeroed(toy.session, layer, 0):
        assert torch.allclose(without, predicted(toy.session, ids), atol=1e-4)


@pytest.mark.parametrize("window", [8, 16, 24, 40])
def test_a_window_on_the_induction_head_costs_what_is_out_of_reach(
    toy: Toy, held_out: Repeated, window: int
) -> None:
    policy = in_layer(inner=f"sliding_window(window={window})", layer=1)
    reachable = float((held_out.distances < window).float().mean())
    reached = accuracy(predicted(toy.session, held_out.ids, policy), held_out.labels)
    assert reached == pytest.approx(reachable, abs=0.03)
    asked = attention_at(toy.session, held_out.ids[:64], policy, source=held_out.sources[:64])
    share = torch.stack(
        [
            (torch.arange(held_out.ids.shape[1]) - row < window)[row >= 0].float().mean()
            for row in held_out.sources[:64]
        ]
    )
    assert asked["source_reachable"][1, 0] == pytest.approx(float(share.mean()), abs=1e-6)
    assert asked["source_reachable"][0, 0] == 1
    assert asked["source"][1, 0] <= asked["source_reachable"][1, 0] + 1e-6


def test_a_window_on_the_previous_token_head_costs_nothing(toy: Toy, held_out: Repeated) -> None:
    for window, least in ((2, 0.95), (4, 0.97), (8, 0.97)):
        policy = in_layer(inner=f"sliding_window(window={window})", layer=0)
        assert accuracy(predicted(toy.session, held_out.ids, policy), held_out.labels) >= least


def test_a_window_of_one_takes_the_previous_token_away(toy: Toy, held_out: Repeated) -> None:
    policy = in_layer(inner="sliding_window(window=1)", layer=0)
    assert accuracy(predicted(toy.session, held_out.ids, policy), held_out.labels) <= 0.08


@pytest.fixture(scope="module")
def captured(toy: Toy, held_out: Repeated, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    path = tmp_path_factory.mktemp("induction") / "trace"
    prompts = prompts_of(toy.session, held_out.ids[:12])
    policy = in_layer(inner="sliding_window(window=16)", layer=1)
    runs: list[Any] = toy.session.capture(prompts, [policy], path, verify=True, progress=False)
    return runs


def test_what_was_captured_is_what_ran(captured: list[Any]) -> None:
    assert [str(run.verdict) for run in captured] == ["verified 3/3"] * 2


def test_the_trace_says_which_head_lost_what(captured: list[Any], held_out: Repeated) -> None:
    """Layer 0 is as it was; the mass that layer 1 loses is what its sources held beyond the window."""
    run = {"run": captured[1].run_id}
    with connect(captured[0].trace) as trace:
        heads = trace.sql(
            "SELECT layer, avg(write_error), avg(kept_mass) FROM diffs WHERE run_b = $run AND rows = 'all'"
            " AND scope = 'end_to_end' GROUP BY 1 ORDER BY 1",
            run,
        ).rows
        edges = trace.sql(
            "SELECT p.name, e.q_pos, e.k_pos, e.p, e.p_base, e.kept FROM edges e JOIN prompts p USING (prompt_id)"
            " WHERE e.run_id = $run AND e.layer = 1 AND e.p_base > 0.5",
            run,
            max_rows=None,
        ).rows
    assert heads[0] == (0, 0, 1)
    assert heads[1][1] > 0.2
    assert heads[1][2] < 0.9
    sources = {
        (f"list-{number}", row, int(key)): row - int(key) < 16
        for number, keys in enumerate(held_out.sources[:12])
        for row, key in enumerate(keys)
        if key >= 0
    }
    found = {(name, q, k): (p, kept) for name, q, k, p, _, kept in edges}
    assert len(sources.keys() & found.keys()) >= 0.95 * len(sources)
    for edge in sources.keys() & found.keys():
        p, kept = found[edge]
        assert kept is sources[edge]
        assert p > 0.5 if kept else p == 0


def test_an_answer_is_generated_as_far_as_its_source_is_in_reach(toy: Toy, held_out: Repeated) -> None:
    """Token by token, with a cache: the second half goes on by itself, and stops where a window hides the first."""
    number = int((held_out.labels >= 0).sum(1).argmax())
    rows = (held_out.labels[number] >= 0).nonzero()[:, 0]
    question, wanted = (
        held_out.ids[number : number + 1, : rows[0] + 1],
        held_out.labels[number][rows].tolist(),
    )
    reach = int(rows[0] - held_out.sources[number][rows[0]])
    answers = {
        window: toy.session.generate(
            question,
            max_new_tokens=len(wanted),
            policy=in_layer(inner=f"sliding_window(window={window})", layer=1),
        )
        for window in (reach, reach + 1)
    }
    assert answers[reach + 1] == wanted
    assert not set(answers[reach][:1]) & set(wanted[:1])


@pytest.fixture(scope="module")
def trap() -> Toy:
    return induction_toy(0, fixed=True)


def test_the_trap_looks_like_induction_where_it_was_trained(trap: Toy) -> None:
    made = repeated(256, torch.Generator().manual_seed(98), fixed=True)
    assert accuracy(predicted(trap.session, made.ids), made.labels) >= 0.97
    found = means(trap.session, made.ids[:128], TargetWatch())
    assert found["induction"].max() >= 0.88
    assert found["previous_token"].max() < 0.2


def test_the_trap_is_refused_the_label_when_the_gap_changes(trap: Toy, tmp_path: Path) -> None:
    gaps = (0, FIXED_GAP, 15)
    heads = roles(trap.session, tmp_path / "t", half=FIXED_HALF, gaps=gaps)
    best = max(heads, key=lambda head: heads[head][f"induction_gap{FIXED_GAP}"])
    assert heads[best][f"induction_gap{FIXED_GAP}"] >= 0.85
    assert heads[best]["induction_min_gap"] < 0.1
    assert labels(heads[best]) == ["fixed-offset head, not induction"]
    assert not any("induction head" in labels(scores) for scores in heads.values())
    alone = roles(trap.session, tmp_path / "t", half=FIXED_HALF, gaps=(FIXED_GAP,))
    assert labels(alone[best]) == ["induction head? (one gap)"]


@pytest.fixture(scope="module")
def pair() -> Toy:
    return induction_toy(1, heads=2)


def test_two_induction_heads_back_each_other_up(pair: Toy, held_out: Repeated) -> None:
    found = means(pair.session, held_out.ids[:128], TargetWatch())
    assert found["induction"][1].min() >= 0.88
    whole = accuracy(predicted(pair.session, held_out.ids), held_out.labels)
    assert whole >= 0.97

    def without(*heads: tuple[int, int]) -> float:
        return accuracy(predicted(pair.session, held_out.ids, ablate=heads), held_out.labels)

    assert min(without((1, 0)), without((1, 1))) >= whole - 0.1  # 0.00 to 0.08 in six trainings
    assert without((1, 0), (1, 1)) <= 0.08
