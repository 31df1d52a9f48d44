"""Restores and ablations change what they say, on prompts the ranking did not see; random heads are the control."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparselens.analyses.cause import run as cause_run
from sparselens.analyses.cause.ablate import ANALYSIS as ABLATE
from sparselens.analyses.cause.estimate import estimate
from sparselens.analyses.cause.plan import Trial, drawn, folds, moved, planned, ranked, sets_of
from sparselens.analyses.cause.ranking import ranking_numbers
from sparselens.analyses.cause.restore import ANALYSIS, Restore
from sparselens.analyses.cause.rows import Panel
from sparselens.analyses.interval import bounds, clustered_mean, resamples
from sparselens.kernels.kernel import kernel
from sparselens.kernels.policy import parse
from sparselens.storage.reader import connect
from sparselens.storage.trace import Trace
from sparselens.workbench.capture import capture
from sparselens.workbench.models import load

POLICY = "a_shape(sink=1,window=6)"
SIZE: dict[str, Any] = {
    "policy": POLICY,
    "prompts": "needles(length=160,n=8,seed=1)",
    "ranked_on": "needles(length=160,n=8,seed=2)",
    "orders": ("write_error", "kept_mass"),
    "counts": (1, 2),
    "random_at": (1,),
    "draws": 3,
    "matched": ("write_error",),
    "check": 0,
}


@pytest.fixture(scope="module")
def restored(small: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("restore") / "trace"
    return path, ANALYSIS.run(
        small, path, **{**SIZE, "check": 3, "orders": ("write_error", "kept_mass", "estimate")}
    )


def answer_nll(session: Any, prompt: Any, policy: str) -> float:
    """The slow way: the whole model's logits under a policy that says everything by itself."""
    logits = session.logits(torch.tensor([prompt.token_ids]), policy=policy, kernel="reference")[0]
    start = len(prompt) - len(prompt.answer_ids)
    logp = torch.log_softmax(logits[start - 1 : -1], -1)
    return float(-logp[torch.arange(len(prompt.answer_ids)), list(prompt.answer_ids)].mean())


def test_no_family_is_tested_with_a_ranking_that_saw_it(small: Any) -> None:
    first, second = folds(small, Restore(**SIZE))
    for fold in (first, second):
        assert not {prompt.group for prompt in fold.tested} & {prompt.group for prompt in fold.ranking}
    assert not {prompt.id for prompt in first.tested} & {prompt.id for prompt in second.tested}
    assert len(first.tested) + len(second.tested) == 8


def test_prompts_of_raw_text_begin_as_bos_says(small: Any, tmp_path: Path) -> None:
    file = tmp_path / "raw.jsonl"
    lines = [{"id": f"p{i}", "text": f"one two {i}", "answer": " three", "group": f"g{i}"} for i in range(2)]
    file.write_text("\n".join(json.dumps(line) for line in lines))
    given = {**SIZE, "prompts": str(file), "ranked_on": str(file)}
    without = [len(fold.tested[0]) for fold in folds(small, Restore(**given, bos="left out"))]
    added = [fold.tested[0] for fold in folds(small, Restore(**given, bos="added"))]
    assert [len(prompt) for prompt in added] == [length + 1 for length in without]
    assert {prompt.token_ids[0] for prompt in added} == {small.tokenizer.bos_token_id}


def test_every_outcome_is_that_of_the_whole_model(small: Any, restored: tuple[Path, str]) -> None:
    with connect(restored[0]) as trace:
        rows = trace.sql(
            "SELECT i.kind, i.heads, p.prompt_id, p.value FROM interventions i JOIN intervention_prompts p"
            " ON p.trial = i.trial AND p.fold = i.fold AND p.metric = i.metric"
            " WHERE i.metric = 'answer_nll' AND i.kind IN ('none', 'base', 'run_dense') AND i.fold IS NOT NULL"
        ).rows
    prompts = {prompt.id: prompt for prompt in small.prompts(SIZE["prompts"])}
    assert len(rows) == 8 * (2 + 3 * 2 + 3)
    for kind, heads, prompt_id, value in rows[::7]:
        policy = {"none": POLICY, "base": "dense"}.get(
            kind, f"per_head(default={POLICY},full=[{','.join(heads)}])"
        )
        assert value == pytest.approx(answer_nll(small, prompts[prompt_id], policy), abs=2e-5)


def test_the_ranking_is_what_a_paired_capture_stores(small: Any, tmp_path: Path) -> None:
    prompts = small.prompts(SIZE["ranked_on"])[:3]
    base, run = capture(small, prompts, [POLICY], tmp_path / "t", progress=False)
    with connect(base.trace) as trace:
        for prompt in prompts:
            found = ranking_numbers(
                small, prompt, parse("dense"), parse(POLICY), kernel("blocked"), ("write_error", "kept_mass")
            )
            stored = trace.sql(
                "SELECT rows, write_error, kept_mass FROM diffs WHERE prompt_id = $p AND run_b = $b"
                " AND scope = 'end_to_end' ORDER BY layer, head",
                {"p": prompt.id, "b": run.run_id},
            ).rows
            errors = [error for rows, error, _ in stored if rows == "span:answer"]
            assert found["write_error"].tolist() == pytest.approx(errors, rel=1e-4)
            for name, over in (("kept_mass", "all"), ("kept_mass_answer", "span:answer")):
                kept = [mass for rows, _, mass in stored if rows == over]
                assert (1 - found[name]).tolist() == pytest.approx(kept, abs=1e-5)


def test_the_estimate_is_the_slope_of_the_loss_towards_the_dense_pattern(small: Any) -> None:
    """Against a finite difference of the loss along z + t (z_dense − z), head by head."""
    prompt = small.prompts(SIZE["prompts"])[1]
    double = in_double()
    found = estimate(double, prompt, parse(POLICY), kernel("reference"))

    class Towards:
        def __init__(self, layer: int, head: int, step: float) -> None:
            self.at, self.step = (layer, head), step

        def edit(self, call: Any, selection: Any, output: Any) -> Any:
            from sparselens.kernels.selection import Everything
            from sparselens.kernels.statistics import NOTHING

            del selection
            if call.layer != self.at[0]:
                return output
            dense = kernel("reference").attend(call, Everything(), NOTHING).output
            moved = output.clone()
            moved[:, self.at[1]] += self.step * (dense - output)[:, self.at[1]]
            return moved

    def loss(layer: int, head: int, step: float) -> float:
        with torch.no_grad(), double.under(POLICY, kernel="reference", editors=[Towards(layer, head, step)]):
            logits = double.model(input_ids=torch.tensor([prompt.token_ids]), use_cache=False).logits[0]
        start = len(prompt) - len(prompt.answer_ids)
        return float(
            torch.nn.functional.cross_entropy(logits[start - 1 : -1], torch.tensor(prompt.answer_ids))
        )

    for layer in range(2):
        for head in range(4):
            near, far = (loss(layer, head, h) - loss(layer, head, -h) for h in (1e-2, 2e-2))
            slope = (8 * near - far) / 12e-2  # fourth order: rounding is what is left
            expected = pytest.approx(slope, abs=1e-4)  # norms round to about 1e-7, divided by 1e-2
            assert found.heads[layer, head].item() == expected
    assert torch.allclose(found.rows.sum(-1), found.heads, atol=1e-6)


def in_double() -> Any:
    """The small session in float64; its norms still compute in float32."""
    from small_session import small_session

    made = small_session()
    made.model.double()
    return made


def test_the_strongest_pairs_are_those_of_the_whole_map(small: Any) -> None:
    prompt = small.prompts(SIZE["prompts"])[1]
    found = estimate(small, prompt, parse(POLICY), kernel("blocked"))
    from sparselens.analyses.stage import answer_losses
    from sparselens.analyses.tap import Tap, embedded

    tap = Tap()
    with small.under(POLICY, editors=[tap]):
        inputs = embedded(small.model, torch.tensor([prompt.token_ids]))
        states = small.model.get_decoder()(inputs_embeds=inputs, use_cache=False).last_hidden_state[0]
        gradients = tap.gradients(answer_losses(small, states, prompt).mean())
    tokens = len(prompt)
    for layer, (tapped, gradient) in enumerate(zip(tap.layers, gradients, strict=True)):
        scores = tapped.call.scores(0, tokens)[0]
        kept = tapped.selection.kept(tapped.call, 0, tokens)[0].expand(4, -1, -1)
        change = torch.softmax(scores, -1) - torch.softmax(scores.masked_fill(~kept, -torch.inf), -1)
        for head in range(4):
            worth = change[head] * (gradient[0, head] @ tapped.call.value[0, head // 2].T)
            best = worth.abs().flatten().topk(4).indices.tolist()
            pairs = zip(
                found.pair_rows[layer, head].tolist(),
                found.pair_keys[layer, head].tolist(),
                found.pair_values[layer, head].tolist(),
                strict=True,
            )
            assert [row * tokens + key for row, key, _ in pairs] == best
            assert worth.sum().item() == pytest.approx(found.heads[layer, head].item(), abs=1e-5)


def test_random_heads_match_the_layers_and_lie_outside() -> None:
    order = {"a": [(0, 1), (3, 2), (3, 4), (5, 0)], "b": [(0, 2), (3, 2), (4, 1), (5, 1)]}
    trials = [Trial("run_dense", 3, "a"), *[Trial("run_dense", 3, "random", "a", draw) for draw in range(20)]]
    sets = sets_of(trials, order, (6, 9), 0, 0)
    assert sets[trials[0]] == ((0, 1), (3, 2), (3, 4))
    outside = {*order["a"][:3], *order["b"][:3]}
    for trial in trials[1:]:
        assert [layer for layer, _ in sorted(sets[trial])] == [0, 3, 3]
        assert not set(sets[trial]) & outside
    assert len({tuple(sorted(sets[trial])) for trial in trials[1:]}) > 10
    assert sets == sets_of(trials, order, (6, 9), 0, 0)
    assert sets[trials[1]] != sets_of(trials, order, (6, 9), 1, 0)[trials[1]]


def test_a_layer_without_other_heads_borrows_from_the_nearest() -> None:
    mine = [(1, 0), (1, 1), (3, 0)]
    found = drawn(mine, [*mine, (2, 0), (2, 1)], (5, 2), "s")
    assert sorted(layer for layer, _ in found) == [0, 0, 3]
    assert moved(mine, found) == 2
    assert moved(mine, [(1, 0), (3, 1), (1, 1)]) == 0
    with pytest.raises(ValueError, match="3 random heads beside 3 ranked ones"):
        drawn([(0, 0), (0, 1), (1, 0)], [(0, 0), (0, 1), (1, 0)], (2, 2), "s")


def test_heads_are_ranked_best_first() -> None:
    scores = {"write_error": np.array([0.1, 0.5, 0.5, 0.2])}
    assert ranked(scores, 2) == {"write_error": [(0, 1), (1, 0), (1, 1), (0, 0)]}


def test_shares_of_the_gap_are_those_of_means_and_their_draws(restored: tuple[Path, str]) -> None:
    with connect(restored[0]) as trace:
        rows = trace.sql(
            "SELECT p.trial, i.kind, i.order_by, i.draw, i.n_heads, p.prompt_id, q.grp, p.value"
            " FROM intervention_prompts p JOIN prompts q USING (prompt_id)"
            " JOIN (SELECT DISTINCT trial, kind, order_by, draw, n_heads FROM interventions WHERE fold = 0) i"
            " ON i.trial = p.trial WHERE p.metric = 'answer_nll' ORDER BY p.prompt_id"
        ).rows
        stored = trace.sql(
            "SELECT metric, value, ci_low, ci_high, n, n_clusters FROM interventions WHERE fold IS NULL"
            " AND order_by = 'write_error' AND n_heads = 1"
        ).rows
    values: dict[tuple[Any, ...], list[float]] = {}
    groups = {row[5]: row[6] for row in rows}
    for _, kind, order, draw, n_heads, _, _, value in rows:
        values.setdefault((kind, order, draw, n_heads), []).append(value)
    mean = {key: sum(each) / len(each) for key, each in values.items()}
    run, base = mean["none", None, None, 0], mean["base", None, None, 0]

    def closed(key: tuple[Any, ...]) -> float:
        return (run - mean[key]) / (run - base)

    found = {row[0]: row[1:] for row in stored}
    mine = closed(("run_dense", "write_error", None, 1))
    assert found["gap_closed"][0] == pytest.approx(mine)
    randoms = [closed(("run_dense", "random", draw, 1)) for draw in range(3)]
    assert found["gap_closed_over_random"][0] == pytest.approx(mine - sum(randoms) / 3)
    assert found["gap_closed"][3:] == (8, 8)
    nll = clustered_mean(
        values["run_dense", "write_error", None, 1], [groups[name] for name in sorted(groups)]
    )
    assert found["answer_nll"][0] == pytest.approx(nll.mean)
    assert found["answer_nll"][1] <= nll.mean <= found["answer_nll"][2]


def test_giving_every_head_back_closes_the_whole_gap_and_cutting_none_costs_nothing(
    small: Any, tmp_path: Path
) -> None:
    whole = {**SIZE, "counts": 8, "random_at": 8, "draws": 0, "orders": "write_error"}
    for number, kind in enumerate(("run_dense", "patch_pattern", "patch_z")):
        ANALYSIS.run(small, tmp_path / "t", **whole, kind=kind)
        with connect(tmp_path / "t") as trace:
            asked = "SELECT value FROM interventions WHERE metric = 'gap_closed' AND fold IS NULL AND kind = $kind"
            (row,) = trace.sql(asked, {"kind": kind}).rows
        assert row[0] == pytest.approx(1.0, abs=1e-3), number


def test_a_wider_policy_costs_what_the_heads_cost(restored: tuple[Path, str]) -> None:
    with connect(restored[0]) as trace:
        rows = trace.sql(
            "SELECT kind, n_heads, value FROM interventions WHERE metric = 'density' AND fold IS NULL"
            " AND (order_by IS NULL OR order_by = 'write_error')"
        ).rows
    found = {(kind, heads): value for kind, heads, value in rows}
    plain = found["none", 0]
    for heads in (1, 2):
        assert found["run_dense", heads] == pytest.approx(plain + (1 - plain) * heads / 8)
        assert found["policy", heads] == pytest.approx(found["run_dense", heads], abs=2 / 160)


def test_an_interrupted_test_of_cause_goes_on_and_says_the_same(
    small: Any, restored: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = {**SIZE, "check": 3, "orders": ("write_error", "kept_mass", "estimate")}
    plain = cause_run.Stage.tried
    calls = [0]

    def stops(self: Any, editor: Any, first: int) -> Any:
        calls[0] += 1
        if calls[0] == 11:
            raise KeyboardInterrupt
        return plain(self, editor, first)

    monkeypatch.setattr(cause_run.Stage, "tried", stops)
    with pytest.raises(KeyboardInterrupt):
        ANALYSIS.run(small, tmp_path / "t", **same)
    (stopped,) = Trace.open(tmp_path / "t").runs()
    before = calls[0]
    assert ANALYSIS.run(small, tmp_path / "t", **same) == stopped.run_id
    monkeypatch.setattr(cause_run.Stage, "tried", plain)
    asked = "SELECT trial, fold, kind, heads, metric, value, ci_low FROM interventions ORDER BY ALL"
    with connect(tmp_path / "t") as ours, connect(restored[0]) as theirs:
        one, other = (trace.sql(asked, max_rows=None).df() for trace in (ours, theirs))
    assert one.drop(columns=["value", "ci_low"]).equals(other.drop(columns=["value", "ci_low"]))
    assert np.allclose(one[["value", "ci_low"]], other[["value", "ci_low"]], equal_nan=True)
    assert before == 11


@pytest.mark.parametrize("kind", ["zero", "mean", "uniform"])
def test_ablations_cut_the_base(small: Any, tmp_path: Path, kind: str) -> None:
    ABLATE.run(small, tmp_path / "t", **{**SIZE, "draws": 1, "counts": 1, "orders": "write_error"}, kind=kind)
    with connect(tmp_path / "t") as trace:
        rows = trace.sql(
            "SELECT metric, value FROM interventions WHERE fold IS NULL AND order_by = 'write_error'"
        ).rows
        plain = trace.sql(
            "SELECT kind, value FROM interventions WHERE fold IS NULL AND metric = 'answer_nll'"
            " AND kind IN ('none', 'base')"
        ).rows
        (run,) = trace.sql("SELECT policy, args FROM runs").rows
    found, untouched = dict(rows), dict(plain)
    assert untouched["none"] == untouched["base"]
    assert found["nll_rise"] == pytest.approx(found["answer_nll"] - untouched["none"])
    assert "nll_rise_over_random" in found
    assert "gap_closed" not in found
    assert run[0] == "dense()" or run[0] == "dense"
    assert json.loads(run[1])["policy"] == POLICY


def test_the_record_and_what_is_printed_say_what_was_done(restored: tuple[Path, str]) -> None:
    path, run_id = restored
    trace = Trace.open(path)
    shown = ANALYSIS.show(trace, run_id, {})
    text = " ".join(shown.notes)
    assert "8 prompts in 8 groups" in text
    assert "one-pass estimate against exact single-head run_dense, 8 heads on 3 prompts: Pearson" in text
    assert "by write_error, fold 0: L" in text
    orders = {row["order"] for row in shown.rows}
    assert orders == {"", "write_error", "kept_mass", "estimate", "random, as write_error"}
    record = trace.run(run_id).record
    assert record.policy == POLICY
    assert len(record.extra["folds"]) == 2
    with connect(path) as connection:
        names = connection.sql("SELECT DISTINCT metric FROM head_scores ORDER BY 1").rows
        assert [name for (name,) in names] == [
            "estimate",
            "kept_mass",
            "restore_estimate",
            "restore_exact",
            "write_error",
        ]
        assert connection.sql("SELECT count(DISTINCT prompt_id), count(*) FROM estimates").rows == [
            (3, 3 * 32)
        ]
        evals = connection.sql("SELECT metric, n FROM evals ORDER BY 1").rows
    assert [tuple(row) for row in evals] == [("estimate_pearson", 3), ("estimate_spearman", 3)]


def test_draws_over_groups_give_the_interval_of_a_mean() -> None:
    values, names = np.arange(12.0), list("aaabbbcccddd")
    times = resamples(names)
    draws = (times @ values) / times.sum(1)
    one = clustered_mean(values, names)
    assert bounds(draws) == pytest.approx((one.low, one.high))
    assert np.isnan(resamples(["a", "a"])).all()
    panel = Panel({Trial("none"): np.ones((2, 3))}, resamples(["a", "a"]), ["a", "a"])
    assert np.isnan(bounds(panel.mean(Trial("none"))[1])).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "zero"}, "kind is one of run_dense, patch_pattern, patch_z"),
        ({"phase": "late"}, "phase is one of both"),
        ({"orders": "size"}, "orders are write_error"),
        ({"matched": "retrieval"}, "matched is among orders"),
        ({"random_at": 3}, "random_at among counts"),
        ({"prompts": "prose(length=80,n=4)"}, "has no answer"),
        ({"prompts": "needles(length=160,n=2,families=[pet])"}, "two groups or more"),
        (
            {"orders": ("write_error", "retrieval"), "matched": "write_error"},
            "answers none of the 4 ranking prompts",
        ),
    ],
)
def test_what_cannot_be_tested_is_refused(
    small: Any, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ANALYSIS.run(small, tmp_path / "t", **{**SIZE, **arguments})


def test_all_trials_are_planned_once() -> None:
    trials = planned(Restore(**SIZE))
    assert len(trials) == len(set(trials)) == 2 + 2 * 2 + 3


@pytest.mark.model
def test_heads_that_write_otherwise_repair_the_default_model_and_random_ones_do_not(tmp_path: Path) -> None:
    session = load("smollm2-135m", progress=False)
    ANALYSIS.run(
        session,
        tmp_path / "t",
        policy="a_shape(sink=4,window=64)",
        prompts="needles(length=224,n=8,seed=1,depths=[0.1,0.4])",
        ranked_on="needles(length=224,n=8,seed=2,depths=[0.1,0.4])",
        orders="write_error",
        matched="write_error",
        counts=17,
        draws=2,
        check=0,
    )
    with connect(tmp_path / "t") as trace:
        rows = trace.sql(
            "SELECT order_by, value FROM interventions WHERE fold IS NULL AND metric = 'gap_closed' AND draw IS NULL"
            " AND order_by IS NOT NULL"
        ).rows
    found = dict(rows)
    assert found["write_error"] > 0.5
    assert found["random"] < 0.25
