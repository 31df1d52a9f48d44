"""A sweep on a small random model: equal density, numbers that slow code agrees with, nothing lost when interrupted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pandas.testing import assert_frame_equal

from sparselens.analyses.analysis import analyses
from sparselens.analyses.answer import analyse
from sparselens.analyses.interval import clustered_mean
from sparselens.analyses.ledger import Ledger
from sparselens.analyses.sweep import run as sweep_run
from sparselens.analyses.sweep.base import Base, Stand
from sparselens.analyses.sweep.dots import dots
from sparselens.analyses.sweep.forward import losses
from sparselens.analyses.sweep.frontier import POINTS, figure, ranked, wide
from sparselens.analyses.sweep.plan import Point, spread
from sparselens.analyses.sweep.recall import recalls
from sparselens.analyses.sweep.rows import seeded_mean
from sparselens.analyses.sweep.tune import settled
from sparselens.kernels.kernel import kernel
from sparselens.kernels.policy import Memory, parse
from sparselens.storage.reader import connect
from sparselens.storage.trace import Trace
from sparselens.workbench.widen import nearest

PROMPTS = "needles(length=160,n=4)"
METHODS = ("a_shape(sink=2,window=16)", "oracle_topk(k=12)", "random(density=0.3,granularity=block,block=16)")
SMALL: dict[str, Any] = {"policies": METHODS, "densities": (0.2, 0.4), "prompts": PROMPTS, "seeds": 2}


@pytest.fixture(scope="module")
def swept(small: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("sweep") / "trace"
    return analyse("sweep", path, small, **SMALL)


@pytest.fixture(scope="module")
def points(swept: Any) -> Any:
    with connect(swept.trace) as connection:
        return wide(connection.sql(POINTS, {"analysis": swept.run_id}, max_rows=None).df())


def test_every_point_is_at_its_density_and_so_are_its_references(points: Any) -> None:
    assert len(points) == 6
    fine = points[~points["method"].str.startswith("random")]
    assert fine["reached"].all()
    assert (abs(fine["density"] / fine["target"] - 1) <= 0.02).all()
    assert (abs(points["density_oracle"] / points["density"] - 1) < 0.005).all()
    static = points[~points["method"].str.startswith("oracle")]
    assert np.allclose(static["density_random"], static["density"], rtol=1e-12)


def test_no_point_recalls_more_than_the_bounds(points: Any) -> None:
    assert (points["above_oracle"] == 0).all()
    assert (points["above_oracle_mass"] == 0).all()
    assert (points["recalled_mass_over_oracle"] <= 1e-6).all()
    assert (points["recalled_mass_all_over_oracle_mass"] <= 1e-6).all()
    oracle = points[points["method"].str.startswith("oracle_topk")]
    assert np.allclose(oracle["recalled_mass_over_oracle"], 0, atol=1e-6)
    assert (oracle["recalled_mass_over_random_low"] > 0).all()


def test_recalled_mass_is_what_slow_code_finds(small: Any, swept: Any, points: Any) -> None:
    """Whole float64 maps of every layer under the base, the mask beside them, row by row."""
    row = points[points["method"].str.startswith("a_shape")].iloc[0]
    policy = parse(row["policy"])
    stand = Stand.of(small, parse("dense"), kernel("reference"), None)
    found = []
    for prompt in small.prompts(PROMPTS):
        means, rest = [], []
        for layer in Base.of(stand, prompt).layers:
            call = layer.call
            scores = (
                call.query.double() @ call.key.double().repeat_interleave(2, 1).transpose(2, 3) * call.scale
            )
            weights = torch.softmax(scores.masked_fill(torch.ones(160, 160).triu(1).bool(), -torch.inf), -1)[
                0
            ]
            kept = policy.select(call, Memory()).rows(call, 0, 160)[0].expand(4, -1, -1).tril()
            for head in range(4):
                mass = [
                    float(weights[head, q][kept[head, q]].sum())
                    for q in range(160)
                    if kept[head, q].sum() < q + 1
                ]
                means.append(sum(mass) / len(mass))
                without = [
                    float(weights[head, q, 1:][kept[head, q, 1:]].sum() / weights[head, q, 1:].sum())
                    for q in range(160)
                    if kept[head, q].sum() < q + 1
                ]
                rest.append(sum(without) / len(without))
        found.append((sum(means) / 8, sum(rest) / 8))
    assert row["recalled_mass"] == pytest.approx(sum(each for each, _ in found) / 4, abs=1e-5)
    assert row["recalled_mass_nosink"] == pytest.approx(sum(each for _, each in found) / 4, abs=1e-4)
    stored = swept.sql(
        "SELECT value FROM prompt_scores WHERE task = 'sweep' AND metric = 'recalled_mass' AND run_id = "
        f"'{row['run_id']}'"
    ).df()["value"]
    assert sorted(stored) == pytest.approx(sorted(each for each, _ in found), abs=1e-5)


def test_losses_are_those_of_the_models_own_logits(small: Any, swept: Any, points: Any) -> None:
    row = points[points["method"].str.startswith("a_shape")].iloc[1]
    losses, changes, divergences = [], [], []
    for prompt in small.prompts(PROMPTS):
        ids = torch.tensor([prompt.token_ids])
        dense, sparse = (
            torch.log_softmax(small.logits(ids, policy=name)[0].double(), -1)
            for name in ("dense", row["policy"])
        )
        target = ids[0, 1:, None]
        nll = [-each[:-1].gather(1, target)[:, 0] for each in (dense, sparse)]
        answer = slice(160 - len(prompt.answer_ids) - 1, 159)
        losses.append(float(nll[1].mean()))
        changes.append(float((nll[1] - nll[0])[answer].mean()))
        divergences.append(float((dense.exp() * (dense - sparse)).sum(-1)[:-1].mean()))
    assert row["nll"] == pytest.approx(np.mean(losses), abs=1e-4)
    assert row["answer_nll_change"] == pytest.approx(np.mean(changes), abs=1e-4)
    assert row["kl"] == pytest.approx(np.mean(divergences), abs=1e-4)


def test_write_error_is_that_of_a_capture(small: Any, swept: Any, points: Any, tmp_path: Path) -> None:
    from sparselens.workbench.capture import capture

    row = points[points["method"].str.startswith("a_shape")].iloc[0]
    capture(small, PROMPTS, [row["policy"]], tmp_path / "t", progress=False)
    with connect(tmp_path / "t") as connection:
        ((error, density),) = connection.sql(
            "SELECT avg(write_error), (SELECT avg(density) FROM head_stats WHERE pattern = 'executed' AND rows = 'all'"
            " AND density < 1) FROM diffs WHERE scope = 'end_to_end' AND rows = 'span:answer'"
        ).rows
    assert row["write_error"] == pytest.approx(error, rel=1e-4)
    assert row["density"] == pytest.approx(density, rel=1e-5)


def test_an_interrupted_sweep_goes_on_and_finds_the_same(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, points: Any
) -> None:
    asked = {"n": 0}
    plain = sweep_run.forward_numbers

    def failing(*args: Any, **options: Any) -> Any:
        asked["n"] += 1
        if asked["n"] == 40:
            raise KeyboardInterrupt
        return plain(*args, **options)

    monkeypatch.setattr(sweep_run, "forward_numbers", failing)
    with pytest.raises(KeyboardInterrupt):
        analyse("sweep", tmp_path / "t", small, **SMALL)
    (stopped,) = Trace.open(tmp_path / "t").runs()
    assert stopped.status == "interrupted"
    again = analyse("sweep", tmp_path / "t", small, **SMALL)
    assert again.run_id == stopped.run_id
    first = asked["n"]
    with connect(tmp_path / "t") as connection:
        found = wide(connection.sql(POINTS, {"analysis": again.run_id}, max_rows=None).df())
    same = [name for name in points.columns if not name.startswith(("seconds", "run_id", "analysis"))]
    assert_frame_equal(found[same], points[same])
    assert analyse("sweep", tmp_path / "t", small, **SMALL).run_id == again.run_id
    assert asked["n"] == first


def test_the_order_of_methods_does_not_matter(small: Any, swept: Any) -> None:
    turned = SMALL | {"policies": METHODS[::-1]}
    assert analyse("sweep", swept.trace, small, **turned).run_id == swept.run_id


def test_a_method_that_cannot_meet_the_density_is_reported_with_the_nearest_and_has_no_rank(
    small: Any, tmp_path: Path
) -> None:
    """Tiles of 64 on 160 tokens: the diagonal ones alone are 40 % of the pairs."""
    block = "random(density=0.3,granularity=block,block=64)"
    given = {"policies": (block, "a_shape(sink=2,window=16)"), "densities": (0.2,)}
    answer = analyse("sweep", tmp_path / "t", small, **(SMALL | given | {"seeds": 1, "references": 1}))
    rows = answer.df().set_index("policy")
    coarse = rows[rows.index.str.startswith("random")].iloc[0]
    assert coarse["density"] > 0.35
    assert "nearest density" in coarse["marks"]
    assert np.isnan(coarse["rank"])
    assert rows[~rows.index.str.startswith("random")]["rank"].tolist() == [1]
    ran = answer.sql(
        "SELECT metric, n FROM evals WHERE analysis_id = $analysis AND metric IN ('write_error', 'write_error_random',"
        " 'recalled_mass_random')"
    ).df()
    assert dict(zip(ran["metric"], ran["n"], strict=True)) == {
        "write_error": 4, "write_error_random": 1, "recalled_mass_random": 4,
    }  # fmt: skip


def test_off_label_points_and_dense_ones_have_no_rank(points: Any) -> None:
    assert ranked(points, "recalled_mass")["rank"].dropna().tolist() != []
    first = points.index[0]
    for column, value in (("off_label", True), ("dense_call_share", 0.5)):
        changed = points.copy()
        changed.loc[first, column] = value
        order = ranked(changed, "recalled_mass")
        assert order.loc[first, "rank"] is not None
        assert order["rank"].isna()[first]
    best = ranked(points, "write_error").query("rank == 1")
    for _, row in best.iterrows():
        others = points[(points["target"] == row["target"]) & points["reached"]]
        assert row["write_error"] == others["write_error"].min()
    with pytest.raises(ValueError, match="have no metric 'beauty'; they have recalled_mass"):
        ranked(points, "beauty")


def test_the_figure_holds_the_points_and_marks_them(swept: Any, points: Any) -> None:
    drawn = swept.figure(metric="write_error")
    traces = {trace.name: trace for trace in drawn.data}
    names = {method: method.partition("(")[0] for method in points["method"]}
    assert set(traces) == {"oracle of the same shape", "random of the same shape", *names.values()}
    for method, rows in points.sort_values("density").groupby("method"):
        assert list(traces[names[method]].x) == rows["density"].tolist()
        assert list(traces[names[method]].y) == rows["write_error"].tolist()
    changed = points.assign(off_label=points["method"].str.startswith("a_shape"))
    symbols = {trace.name: trace.marker.symbol for trace in figure(changed, "nll_change").data}
    assert set(symbols["a_shape"]) == {"circle-open"}
    assert all("open" not in symbol for symbol in symbols["oracle_topk"])
    twice = points.assign(method=[f"one(k={n % 3})" for n in range(6)])
    assert {trace.name for trace in figure(twice, "kl").data} > {"one(k=0)", "one(k=1)", "one(k=2)"}
    with pytest.raises(ValueError, match="one figure is of one phase"):
        figure(points.assign(phase=["prefill"] * 3 + ["decode"] * 3), "nll_change")


def test_points_of_one_density_are_drawn_in_the_order_of_their_rank(points: Any) -> None:
    names = ("recalled_mass", "write_error")
    drawn = dots(points, names, 0.4)
    asked = ranked(points[points["target"] == 0.4], "recalled_mass")
    rows = [method.partition("(")[0] for method in asked["method"]]
    for trace in drawn.data:
        assert list(trace.y) == rows
        assert (
            list(trace.x)
            == asked[
                trace.name if trace.name in names else f"{names[trace.xaxis == 'x2']}_{trace.name}"
            ].tolist()
        )
    with pytest.raises(ValueError, match=r"no point has the target density 0.3; there are 0.2, 0.4"):
        dots(points, names, 0.3)


def test_decoding_is_a_frontier_of_its_own(small: Any, tmp_path: Path) -> None:
    given = {
        "policies": ("sliding_window(window=16,phase=decode)", "oracle_topk(k=12,phase=decode)"),
        "densities": (0.2,),
        "decode": "answer",
        "prompts": "needles(length=140,n=2)",
        "seeds": 1,
    }
    with pytest.raises(ValueError, match="asked to prefill"):
        analyse("sweep", tmp_path / "t", small, **(given | {"decode": ""}))
    assert not Trace.open(tmp_path / "t").runs()
    answer = analyse("sweep", tmp_path / "t", small, **given)
    rows = answer.df()
    assert rows["phase"].tolist() == ["decode", "decode"]
    assert rows["density"].tolist() == pytest.approx([0.2, 0.2], rel=0.02)
    assert (rows["recalled_mass − oracle"] <= 1e-6).all()


def test_losses_of_a_decode_are_of_the_decoded_tokens(small: Any) -> None:
    prompt = small.prompts(PROMPTS)[0]
    policy = parse("sliding_window(window=4,phase=decode)")
    found = {}
    for decode in (12, "answer"):
        base = Base.of(Stand.of(small, parse("dense"), kernel("blocked"), decode), prompt)
        states, _ = base.stand.run(prompt, policy)
        found[decode] = losses(base, states, every_token=True)
        for name in ("nll", "nll_change", "kl"):
            of_all = losses(replace(base, stand=replace(base.stand, decode=None)), states, every_token=True)
            assert found[decode][name] != pytest.approx(of_all[name], rel=1e-3)
        logp = base.stand.log_probabilities(states).double()
        taken = logp[:-1].gather(1, torch.tensor(prompt.token_ids)[1:, None])[:, 0]
        count = 12 if decode == 12 else len(prompt.answer_ids)
        assert found[decode]["nll"] == pytest.approx(-float(taken[-count:].detach().mean()), abs=1e-5)
    assert found["answer"]["nll"] == pytest.approx(found["answer"]["answer_nll"], abs=1e-9)


def test_masses_from_counts_and_from_masks_agree(small: Any) -> None:
    """The oracle's and a random selection's mass: once from sorted weights, once by choosing the keys."""
    stand = Stand.of(small, parse("dense"), kernel("blocked"), None)
    prompt = small.prompts(PROMPTS)[0]
    base = Base.of(stand, prompt)
    for text in ("oracle_mass(density=0.2)", "per_head(default=a_shape(sink=2,window=9),full=[L0H1,L1H3])"):
        (fast,) = recalls(base, [parse(text)], 2)
        for role, wrapped in (
            ("oracle", f"oracle_of(policy={text})"), ("random_1", f"random_of(policy={text},seed=1)"),
        ):  # fmt: skip
            (slow,) = recalls(base, [parse(wrapped)], 1)
            for metric in ("recalled_mass", "recalled_mass_all", "recalled_mass_nosink"):
                assert fast[f"{metric} {role}"] == pytest.approx(slow[metric], abs=2e-6), (text, role, metric)


def test_the_aim_is_corrected_until_the_measured_density_is_met() -> None:
    """A method that keeps half as much when it runs as it said on the base's tensors."""

    class Half:
        def tuned(self, method: str, aim: float, start: Any = None) -> Any:
            return parse(f"random(density={aim:.6f})")

        def forget(self) -> None: ...

    asked: list[float] = []

    def measure(points: Any) -> list[float]:
        asked.extend(point.policy.density for point in points)
        return [point.policy.density / 2 for point in points]

    (found,) = settled([Point("m", 0.2, parse("random"))], Half(), lambda _: [0.25], measure)  # type: ignore[arg-type]
    assert found.reached
    assert asked == pytest.approx([0.16, 0.4])


def test_the_nearest_budget_is_found_in_few_steps_and_a_step_is_not_searched_forever() -> None:
    asked: list[float] = []

    def smooth(policy: Any) -> float:
        asked.append(policy.density)
        return float(policy.density) ** 1.5

    found, density = nearest(parse("random(density=0.9)"), smooth, 0.1)
    assert density == pytest.approx(0.1, rel=0.005)
    assert float(found.density) ** 1.5 == density  # type: ignore[attr-defined]
    assert len(asked) <= 9
    asked.clear()
    found, density = nearest(
        parse("random(density=0.5)"), lambda each: 0.3 if each.density > 0.2 else 0.05, 0.1
    )  # type: ignore[attr-defined]
    assert density == 0.05
    assert nearest(parse("dense"), lambda _: 1.0, 0.1) == (parse("dense"), 1.0)


def test_intervals_draw_clusters_and_seeds() -> None:
    rng = np.random.default_rng(0)
    values, clusters = rng.normal(size=12), [f"c{n % 4}" for n in range(12)]
    mean, low, high = seeded_mean(values[None], clusters)
    plain = clustered_mean(values, clusters)
    assert mean == pytest.approx(plain.mean)
    assert (low, high) == pytest.approx((plain.low, plain.high), abs=0.05)
    apart = np.stack([values, values + 2, values + 4])
    _, lower, higher = seeded_mean(apart, clusters)
    assert higher - lower > high - low + 1
    assert np.isnan(seeded_mean(values[None], ["one"] * 12)[1])


def test_references_are_spread_over_clusters(small: Any) -> None:
    prompts = small.prompts("needles(length=140,n=12)")
    groups = [prompt.group for prompt in spread(prompts, 4)]
    assert len(set(groups)) == 4
    alone = [replace(prompt, group=None) for prompt in prompts]
    assert [alone.index(prompt) for prompt in spread(alone, 3)] == [0, 4, 8]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"densities": (0.0,)}, r"densities lie in \(0, 1\]"),
        ({"policies": ("a_shape", "a_shape()")}, "given twice"),
        ({"seeds": 0}, "seeds is 1 or more"),
        ({"decode": "soon"}, "number of last tokens"),
        ({"policies": ("nothing",)}, "nothing"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        analyses()["sweep"].settle(SMALL | given)
    assert "\n" not in str(error.value)


def test_a_ledger_without_a_folder_serves_too(small: Any) -> None:
    from sparselens.analyses.sweep.plan import Sweep
    from sparselens.workbench.progress import Progress

    chosen = Sweep(policies=(METHODS[0],), densities=(0.3,), prompts="prose(length=96,n=2)", seeds=1)
    found = sweep_run.Study(small, chosen, Ledger(), Progress(1, 1, enabled=False)).run()
    assert found.points[0].reached
    assert {"nll random_0", "write_error oracle"} <= set(found.numbers[0][0])
    assert "answer_nll" not in found.base[0]


def test_the_command_prints_the_ranked_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    from small_model import save_small_model

    from sparselens.workbench.cli import main

    model = save_small_model(tmp_path / "model")
    words = [
        "sweep",
        str(model),
        "--prompts",
        "prose(length=64,n=2)",
        "--density",
        "0.7",
        "--seeds",
        "1",
        "--json",
    ]
    words += ["--policy", "a_shape(sink=2,window=9)", "--policy", "sliding_window(window=9)"]
    assert main([*words, "--trace", str(tmp_path / "t")]) == 0
    printed = capsys.readouterr()
    rows = json.loads(printed.out)
    assert [row["rank"] for row in rows] == [1, 2]
    assert rows[0]["recalled_mass"] >= rows[1]["recalled_mass"]
    assert "no point recalled more mass than the oracle" in printed.err
    assert main([*words, "--trace", str(tmp_path / "t"), "--metric", "beauty"]) == 2
    assert main([*words[:4], "--policy", "dense", "--density", "much", "--trace", str(tmp_path / "t")]) == 2
    assert "written 0.1,0.2,0.4" in capsys.readouterr().err
