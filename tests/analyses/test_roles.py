"""Role scores find what was put into a map, refuse what only looks like it, and agree with a slow second way."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparselens.analyses.analysis import Analysis, Findings, Shown, analyses, found_in, parse
from sparselens.analyses.interval import clustered_mean, clustered_means
from sparselens.analyses.pattern_scores import (
    TARGETS,
    entropy_share,
    is_sink,
    last_same,
    mean_on_targets,
    sink_alpha,
    targets,
)
from sparselens.analyses.report.report import report
from sparselens.analyses.roles import ground
from sparselens.analyses.roles.labels import labels
from sparselens.analyses.roles.plan import Roles, planned
from sparselens.analyses.roles.question import ANALYSIS, measured_on
from sparselens.analyses.roles.watch import TargetWatch, looked
from sparselens.kernels.call import Allowed, AttentionCall
from sparselens.kernels.kernel import Attended
from sparselens.kernels.selection import Selection
from sparselens.kernels.statistics import Pools, Want, empty_statistics, reduce_rows
from sparselens.storage.reader import connect
from sparselens.storage.trace import Trace
from sparselens.workbench.cli import main
from sparselens.workbench.models import load

T = 64
PATTERNS = ("repeats", "windows", "texts")
QUICK = {
    "sequences": 3,
    "windows": 5,
    "texts": 2,
    "half": 20,
    "gaps": (0, 7, 30),
    "length": 96,
    "parts": PATTERNS,
}


def reduced(weights: Tensor, **sizes: Any) -> dict[str, Tensor]:
    """What a kernel would report of a map `[heads, T, T]`."""
    heads, length, _ = weights.shape
    index = torch.arange(length)
    tensors = torch.zeros(1, heads, length, 4)
    call = AttentionCall(tensors, tensors, tensors, index[None], index[None], Allowed(index, index), 1.0)
    names = {"entropy", "sink_mass", "local_mass", "distance", "received"} | (
        {"gathered"} if sizes else set()
    )
    want = Want(frozenset(names), **sizes)
    statistics = empty_statistics(call, want)
    reduce_rows(statistics, weights[None].float(), call, 0, want, Pools.of(call, 8))
    return {name: value[0] for name, value in statistics.items()}


def at_targets(weights: Tensor, ids: Tensor) -> list[float]:
    keys = targets(ids)
    found = reduced(weights, gather=keys[None, None].expand(1, len(weights), -1, -1))
    return mean_on_targets(found["gathered"], keys)[0].tolist()


SEEN_BY = torch.arange(T, 0, -1)
UNIFORM = (torch.tril(torch.ones(T, T)) / torch.arange(1, T + 1)[:, None])[None]
SHIFTED = torch.zeros(1, T, T)
SHIFTED[0, 0, 0] = 1
SHIFTED[0, torch.arange(1, T), torch.arange(T - 1)] = 1
ON_FIRST = torch.zeros(1, T, T)
ON_FIRST[0, :, 0] = 1


def test_a_uniform_map_has_no_sink_full_entropy_and_half_the_distance() -> None:
    found = reduced(UNIFORM)
    alpha = sink_alpha(found["received"], SEEN_BY)
    harmonic = [sum(1 / i for i in range(k, T + 1)) / (T - k + 1) for k in range(1, T + 1)]
    assert alpha[0].tolist() == pytest.approx(harmonic, abs=1e-6)
    assert alpha[0, 0] == pytest.approx(4.7439 / 64, abs=1e-5)
    assert [sink.item() for sink in is_sink(alpha, 0.3)] == [False, False]
    share = entropy_share(found["entropy"], torch.arange(1, T + 1)[None])
    assert torch.isnan(share[0, 0])
    assert torch.allclose(share[0, 1:], torch.ones(T - 1), atol=1e-6)
    assert found["distance"][0].tolist() == pytest.approx([q / 2 for q in range(T)], abs=1e-4)


def test_all_mass_on_the_first_key_is_a_sink_without_entropy() -> None:
    found = reduced(ON_FIRST)
    alpha = sink_alpha(found["received"], SEEN_BY)
    assert alpha[0, 0] == pytest.approx(1)
    assert [sink.item() for sink in is_sink(alpha, 0.3)] == [True, False]
    assert found["entropy"].abs().max() == 0
    assert found["sink_mass"].min() == 1
    assert found["distance"][0].tolist() == list(range(T))


def test_the_identity_flags_only_the_last_three_keys_which_are_left_out() -> None:
    alpha = sink_alpha(reduced(torch.eye(T)[None])["received"], SEEN_BY)
    assert torch.allclose(alpha[0], 1 / SEEN_BY)
    assert (alpha[0] > 0.3).nonzero()[:, 0].tolist() == [T - 3, T - 2, T - 1]
    assert [sink.item() for sink in is_sink(alpha, 0.3)] == [False, False]
    assert is_sink(alpha, 0.3, edge=0)[1].item()


def test_a_shift_by_one_is_a_previous_token_map_and_nothing_else() -> None:
    half = torch.arange(T // 2)
    assert at_targets(SHIFTED, torch.cat([half, half])) == [1.0, 0.0, 0.0]


def test_the_sink_rate_is_thresholded_before_it_is_averaged() -> None:
    alphas = [torch.full((1, 20), value) for value in (0.9, 0.1, 0.1, 0.1)]
    rate = np.mean([is_sink(alpha, 0.25)[0].item() for alpha in alphas])
    assert rate == 0.25
    assert is_sink(torch.stack(alphas).mean(0), 0.25)[0].item()  # the wrong order says 100 %


def test_targets_follow_the_tokens_not_an_offset() -> None:
    ids = torch.tensor([5, 6, 7, 9, 5, 6, 8, 7, 5])
    assert last_same(ids).tolist() == [-1, -1, -1, -1, 0, 1, -1, 2, 4]
    assert targets(ids)[:, TARGETS.index("induction")].tolist() == [-1, -1, -1, -1, 1, 2, -1, 3, 5]
    assert targets(ids)[:, 0].tolist() == list(range(-1, 8))


class Planted:
    """A kernel that attends as it was told in layer 0: induction, a fixed offset, the token before, uniform."""

    name = "planted"

    def __init__(self, offset: int) -> None:
        self.offset = offset

    def attend(self, call: AttentionCall, selection: Selection, want: Want) -> Attended:
        weights = (
            torch.tril(torch.ones(call.q_len, call.q_len)) / torch.arange(1, call.q_len + 1)[:, None]
        ).repeat(1, call.heads, 1, 1)
        if call.layer == 0:
            value = call.value[0, 0]  # of the token alone: equal for equal tokens
            for q in range(call.q_len):
                same = [k for k in range(q) if torch.allclose(value[q], value[k], atol=1e-4)]
                keys = (same[-1] + 1 if same else 0, q - self.offset, q - 1)
                for head, key in enumerate(keys):
                    weights[0, head, q] = 0
                    weights[0, head, q, 0] += 0.1
                    weights[0, head, q, max(key, 0)] += 0.9
        pools = Pools.of(call, want.cells)
        statistics = empty_statistics(call, want, pools)
        reduce_rows(statistics, weights, call, 0, want, pools)
        output = weights @ call.value.repeat_interleave(call.group, dim=1)
        return Attended(output, torch.zeros(call.query.shape[:3]), statistics)


@pytest.fixture(scope="module")
def planted(small: Any) -> dict[tuple[str, int], Any]:
    """Scores by metric and head number (layer 0 has 0–3), with the offset that is induction at gap 0."""
    chosen = Roles(**QUICK)
    found = measured_on(small, planned(small, chosen), chosen, Planted(chosen.half - 1))
    return {(each.metric, head): each.mean[head] for each in found for head in range(8)}


def of_head(planted: dict[tuple[str, int], Any], head: int) -> dict[str, float]:
    return {metric: value for (metric, number), value in planted.items() if number == head}


def test_a_planted_induction_head_is_found_at_every_gap(planted: dict[tuple[str, int], Any]) -> None:
    scores = of_head(planted, 0)
    for metric in ("induction", "induction_min_gap", "induction_gap0", "induction_gap7", "induction_gap30"):
        assert scores[metric] == pytest.approx(0.9, abs=1e-5), metric
    assert labels(scores) == ["induction head"]


def test_a_fixed_offset_head_scores_at_its_own_gap_and_is_refused_the_label(
    planted: dict[tuple[str, int], Any],
) -> None:
    scores = of_head(planted, 1)
    assert scores["induction_gap0"] == pytest.approx(0.9, abs=1e-5)
    assert scores["induction_min_gap"] == pytest.approx(0, abs=1e-6)
    assert labels(scores) == ["fixed-offset head, not induction"]
    assert labels(
        {name: value for name, value in scores.items() if name not in ("induction_gap7", "induction_gap30")}
    ) == ["induction head? (one gap)"]  # the trap: with one gap alone nobody could tell


def test_a_score_that_fades_with_the_gap_is_no_fixed_offset_and_no_induction_head() -> None:
    fading = {"induction_gap0": 0.6, "induction_gap7": 0.4, "induction_gap30": 0.2}
    assert labels(fading) == ["depends on the gap, not induction"]
    assert labels(fading, threshold=0.2) == ["induction head"]
    assert labels(fading, threshold=0.7) == []
    hidden = {"induction_gap0": 0.9, "induction_gap50": 0.0, "induction_reachable": 0.5}
    assert labels(hidden) == ["not judged for induction: the policy drops targets"]


def test_a_planted_previous_token_head_and_a_uniform_one_are_told_apart(
    planted: dict[tuple[str, int], Any],
) -> None:
    scores = of_head(planted, 2)
    assert scores["previous_token"] == pytest.approx(0.9, abs=0.01)
    assert scores["induction"] < 0.02
    assert labels(scores) == ["previous-token head"]
    assert labels(of_head(planted, 3)) == []
    assert of_head(planted, 3)["entropy_norm"] == pytest.approx(1, abs=1e-5)


def test_a_random_model_is_flat(tmp_path: Path) -> None:
    from small_tokenizer import small_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    from sparselens.workbench.models import wrap

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=3000, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256,
    )  # fmt: skip
    random = wrap(LlamaForCausalLM(config).eval(), small_tokenizer())
    done = ANALYSIS.run(random, tmp_path / "t", sequences=3, windows=5, texts=2, parts=PATTERNS)
    with connect(tmp_path / "t") as trace:
        best = dict(trace.sql("SELECT metric, max(value) FROM head_scores GROUP BY ALL").rows)
        alpha = trace.sql("SELECT avg(value) FROM head_scores WHERE metric = 'sink_alpha'").rows[0][0]
    assert max(best[name] for name in TARGETS) <= 0.06
    assert best["sink_rate"] == 0
    assert alpha == pytest.approx(0.0741, abs=0.003)  # as the uniform map
    shown = ANALYSIS.show(Trace.open(tmp_path / "t"), done, {})
    assert not any(row["label"] for row in shown.rows)


@pytest.mark.parametrize("family", ["gemma3", "gpt2"])
def test_other_families_are_analysed_unchanged(family: str, tmp_path: Path) -> None:
    from small_tokenizer import small_tokenizer
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GPT2Config, GPT2LMHeadModel

    from sparselens.workbench.models import wrap

    torch.manual_seed(0)
    if family == "gemma3":
        config = Gemma3TextConfig(
            vocab_size=3000, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=1, head_dim=16, sliding_window=24, max_position_embeddings=256,
            layer_types=["sliding_attention", "full_attention"], initializer_range=0.2, query_pre_attn_scalar=16,
        )  # fmt: skip
        model: Any = Gemma3ForCausalLM(config)
    else:
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=3000, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.2,
                attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0,
            )
        )  # fmt: skip
    session = wrap(model.eval(), small_tokenizer())
    ANALYSIS.run(session, tmp_path / "t", **QUICK)
    expected = []
    for material in planned(session, Roles(**QUICK)).repeats:
        for prompt in material.prompts:
            maps = slow_patterns(session, list(prompt.token_ids))
            rows = [maps[:, :, q, q - prompt.metadata["period"] + 1] for q in range(*prompt.spans["second"])]
            expected.append(torch.stack(rows).mean(0))
    with connect(tmp_path / "t") as trace:
        values = trace.sql(
            "SELECT value FROM head_scores WHERE metric = 'induction' ORDER BY layer, head"
        ).rows
        reached = trace.sql(
            "SELECT layer, avg(value) FROM head_scores WHERE metric = 'induction_reachable' GROUP BY 1 ORDER BY 1"
        ).rows
    assert [row[0] for row in values] == pytest.approx(
        torch.stack(expected).mean(0).flatten().tolist(), abs=1e-4
    )
    if family == "gemma3":  # the native window of layer 0 sees 20 tokens back, not 27 or 50
        assert reached == [(0, pytest.approx(1 / 3)), (1, 1)]
    else:
        assert reached == []


@pytest.fixture(scope="module")
def analysed(small: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("roles") / "trace"
    return path, ANALYSIS.run(small, path, **QUICK)


def slow_patterns(small: Any, ids: list[int]) -> Tensor:
    """All maps `[layers, heads, T, T]` from transformers' eager attention, not ours."""
    kind = small.model.config._attn_implementation
    small.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            maps = small.model(
                input_ids=torch.tensor([ids]), output_attentions=True, use_cache=False
            ).attentions
    finally:
        small.model.set_attn_implementation(kind)
    return torch.cat(maps)


def test_scores_are_those_of_whole_maps_walked_in_loops(small: Any, analysed: tuple[Path, str]) -> None:
    plan = planned(small, Roles(**QUICK))
    sums: dict[str, list[Tensor]] = {}
    for material in plan.repeats:
        for prompt in material.prompts:
            maps = slow_patterns(small, list(prompt.token_ids))
            start, stop = prompt.spans["second"]
            period = prompt.metadata["period"]
            for metric, offset in (("induction", period - 1), ("duplicate_token", period)):
                rows = [maps[:, :, q, q - offset] for q in range(start, stop)]
                sums.setdefault(metric, []).append(torch.stack(rows).mean(0))
            before = [maps[:, :, q, q - 1] for q in range(1, len(prompt))]
            sums.setdefault("previous_token", []).append(torch.stack(before).mean(0))
    for prompt in plan.windows.prompts:
        maps = slow_patterns(small, list(prompt.token_ids))
        alpha = maps[:, :, :, 0].mean(-1)
        sums.setdefault("sink_alpha", []).append(alpha)
        sums.setdefault("sink_rate", []).append((alpha > 0.3).float())
    for prompt in plan.texts.prompts:
        maps = slow_patterns(small, list(prompt.token_ids)).double()
        entropy, distance, local = [], [], []
        for q in range(64, len(prompt)):
            row = maps[:, :, q, : q + 1]
            entropy.append(-torch.xlogy(row, row).sum(-1) / math.log(q + 1))
            distance.append((row * (q - torch.arange(q + 1))).sum(-1))
            local.append(row[..., q - 63 :].sum(-1))
        for metric, values in (("entropy_norm", entropy), ("distance", distance), ("local_mass", local)):
            sums.setdefault(metric, []).append(torch.stack(values).mean(0))
    with connect(analysed[0]) as trace:
        rows = trace.sql("SELECT metric, layer, head, value FROM head_scores", max_rows=None).rows
    stored = {(metric, layer, head): value for metric, layer, head, value in rows}
    for metric, values in sums.items():
        mean = torch.stack(values).mean(0)
        for layer in range(2):
            for head in range(4):
                expected = float(mean[layer, head])
                assert stored[metric, layer, head] == pytest.approx(expected, abs=2e-4, rel=2e-4), metric


def test_every_score_says_what_it_is_over(analysed: tuple[Path, str]) -> None:
    path, run_id = analysed
    with connect(path) as trace:
        rows = trace.sql("SELECT * FROM head_scores", max_rows=None).df()
        run = trace.sql("SELECT kind, name, status, weight_hash, policy, args FROM runs").rows
    assert len(run) == 1
    assert run[0][:3] == ("analysis", "roles", "complete")
    assert len(run[0][3]) == 64
    assert run[0][4] == "dense"
    assert json.loads(run[0][5])["gaps"] == [0, 7, 30]
    columns = ["definition", "rows", "n", "n_clusters", "ci_low", "ci_high", "prompt_set", "params"]
    assert not rows[columns].isna().any().any()
    assert set(rows["analysis_id"]) == {run_id}
    assert ((rows["ci_low"] <= rows["value"] + 1e-9) & (rows["value"] <= rows["ci_high"] + 1e-9)).all()
    assert all(
        {"bos", "opening", "policy", "pattern", "seed"} <= set(json.loads(text)) for text in rows["params"]
    )
    counts = rows.drop_duplicates("metric").set_index("metric")[["n", "n_clusters"]]
    assert counts.loc["induction"].tolist() == [3 * 3 * 20, 9]
    assert counts.loc["induction_gap7"].tolist() == [60, 3]
    assert counts.loc["previous_token"].tolist() == [3 * (39 + 46 + 69), 9]
    assert counts.loc["sink_rate"].tolist() == [5, 5]
    assert counts.loc["entropy_norm"].tolist() == [64, 2]


def test_equal_arguments_are_answered_once_unless_asked_again(small: Any, analysed: tuple[Path, str]) -> None:
    path, run_id = analysed
    assert ANALYSIS.run(small, path, **QUICK) == run_id
    anew = ANALYSIS.run(small, path, again=True, **QUICK)
    assert anew != run_id
    with connect(path) as trace:
        assert trace.sql("SELECT DISTINCT analysis_id FROM head_scores").rows == [
            (anew,)
        ]  # superseded, not doubled
        same = trace.sql(
            "SELECT count(*), count(*) FILTER (WHERE a.value IS NOT DISTINCT FROM b.value) FROM head_scores_history a"
            " JOIN head_scores_history b USING (layer, head, metric) WHERE a.analysis_id < b.analysis_id"
        ).rows[0]
    assert same[0] == same[1] > 0
    assert ANALYSIS.run(small, path, **{**QUICK, "policy": "dense()"}) == anew


def test_a_policy_whose_source_changed_is_measured_anew(small: Any, tmp_path: Path) -> None:
    text = """import sparselens as sl

@sl.policy
def near(call, memory):
    return call.query_positions[:, None, :, None] - call.key_positions[:, None, None, :] < {window}
"""
    found = []
    for window in (16, 90):
        (tmp_path / "near.py").write_text(text.format(window=window))
        policy = f"{tmp_path / 'near.py'}:near"
        found.append(ANALYSIS.run(small, tmp_path / "t", policy=policy, **QUICK))
        assert ANALYSIS.run(small, tmp_path / "t", policy=policy, **QUICK) == found[-1]
    assert found[0] != found[1]
    with connect(tmp_path / "t") as trace:
        ask = "SELECT min(value) FROM head_scores_history WHERE metric = 'induction_reachable' AND analysis_id = $id"
        assert [trace.sql(ask, {"id": run_id}).rows[0][0] for run_id in found] == [0, None]
        assert "call.query_positions" in trace.sql("SELECT policy_source FROM runs").rows[0][0]


def test_the_order_of_the_prompts_does_not_matter(small: Any) -> None:
    prompts = planned(small, Roles(**QUICK)).repeats[1].prompts

    def values(order: list[Any]) -> dict[str, Tensor]:
        return {p.id: looked(small, "dense", "blocked", p, TargetWatch())[0] for p in order}

    forwards, backwards = values(prompts), values(prompts[::-1])
    assert all(torch.equal(forwards[name], backwards[name]) for name in forwards)


def test_an_interrupted_measurement_goes_on_and_says_the_same(
    small: Any, analysed: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def stops(session: Any, policy: Any, kernel: Any, prompt: Any, watch: Any) -> Any:
        seen.append(prompt.id)
        if len(seen) == 9:
            raise KeyboardInterrupt
        return looked(session, policy, kernel, prompt, watch)

    monkeypatch.setattr(ground, "looked", stops)
    with pytest.raises(KeyboardInterrupt):
        ANALYSIS.run(small, tmp_path / "t", **QUICK)
    (stopped,) = Trace.open(tmp_path / "t").runs()
    assert stopped.status == "interrupted"
    assert ANALYSIS.run(small, tmp_path / "t", **QUICK) == stopped.run_id
    assert len(seen) == 9 + (3 * 3 + 5 + 2) - 8  # what was measured is not run again
    asked = "SELECT metric, layer, head, value, ci_low, ci_high, n, params FROM head_scores ORDER BY ALL"
    with connect(tmp_path / "t") as ours, connect(analysed[0]) as theirs:
        assert ours.sql(asked, max_rows=None).rows == theirs.sql(asked, max_rows=None).rows


def test_what_a_policy_cannot_reach_scores_nothing_and_the_share_is_beside_it(
    small: Any, tmp_path: Path
) -> None:
    chosen = {**QUICK, "half": 50, "gaps": 50}
    for policy, share in (("sliding_window(window=16)", 0.0), ("a_shape(sink=4,window=16)", 3 / 50)):
        run_id = ANALYSIS.run(small, tmp_path / "t", policy=policy, **chosen)
        with connect(tmp_path / "t") as trace:
            found = trace.sql(
                "SELECT metric, min(value), max(value) FROM head_scores WHERE analysis_id = $id GROUP BY ALL",
                {"id": run_id},
            ).rows
        of = {metric: (low, high) for metric, low, high in found}
        assert of["induction_reachable"] == pytest.approx((share, share))  # keys 1, 2, 3 are in the sink
        assert "previous_token_reachable" not in of
        assert of["induction"] == (0, 0) if share == 0 else 0 < of["induction"][1] < 0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gap": 3}, "no parameter 'gap'; it has policy"),
        ({"sequences": "many"}, "sequences is a int"),
        ({"policy": "nothing"}, "no policy named 'nothing'"),
        ({"bos": "maybe"}, "bos is one of default"),
        ({"length": 1000}, "the model's context 256"),
        ({"parts": "sinks"}, "has no part 'sinks'; it has repeats"),
    ],
)
def test_what_cannot_be_measured_is_refused_and_nothing_is_written(
    small: Any, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ANALYSIS.run(small, tmp_path / "t", **arguments)
    assert not (tmp_path / "t" / "runs").exists() or not list((tmp_path / "t" / "runs").iterdir())


def test_the_report_names_the_roles_of_the_heads_it_lists(small: Any, prompts: Any, tmp_path: Path) -> None:
    from sparselens.workbench.capture import capture

    path = tmp_path / "t"
    base, run = capture(small, prompts, ["a_shape(sink=2,window=9)"], path, progress=False)
    assert "Role scores of these heads are not in this trace." in report(path, base.run_id, [run.run_id])

    def find(_: Any) -> Findings:
        time.sleep(0.2)
        scores = {"induction": (0.9, 0.5), "induction_min_gap": (0.88, 0.02), "sink_alpha": (0.7, 0.7)}
        rows = {"layer": [0, 1], "head": [2, 3], "n": 1, "definition": "planted"}
        return Findings(
            [
                ("head_scores", {**rows, "metric": metric, "value": list(pair)})
                for metric, pair in scores.items()
            ],
            {"policy": "dense"},
        )

    told = Analysis("planted", "?", Roles, find, lambda _: "", lambda *_: Shown([], []))
    told.run(small, path)
    text = report(path, base.run_id, [run.run_id])
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip().startswith("L")}
    assert lines["L0H2"].endswith("  induction 0.90")
    assert lines["L1H3"].endswith("  induction 0.50 (0.02 at its worst gap)")
    assert "Role scores" not in text
    with connect(path) as trace:
        assert trace.sql("SELECT DISTINCT run_id FROM head_scores").rows == [(base.run_id,)]
        assert trace.sql("SELECT seconds FROM runs WHERE name = 'planted'").rows[0][0] >= 0.2
    ANALYSIS.run(small, path, policy=run.policy, **QUICK)  # roles under the policy are not those of the base
    again = report(path, base.run_id, [run.run_id])
    assert [line for line in again.splitlines() if line.strip().startswith("L")] == [*lines.values()]


def test_the_commands_list_analyse_and_say_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyses", "--json"]) == 0
    listed = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert set(listed) == set(analyses())
    assert listed["roles"]["parameters"]["epsilon"] == 0.3
    for words, message in (
        (["nothing"], "no analysis named 'nothing'; there are"),
        (["roles"], "give --model"),
        (["roles(", "--model", "smollm2-135m"], "cannot be read"),
        (["roles(sequence=3)"], "no parameter 'sequence'"),
    ):
        assert main(["analyse", *words, "--trace", str(tmp_path / "t")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "t").exists()


def test_calls_are_read_as_they_are_written() -> None:
    analysis, arguments = parse("roles(gaps=[0,50], policy='a_shape(sink=4,window=16)')")
    chosen = analysis.settle(arguments)
    assert (chosen.gaps, chosen.policy) == ((0, 50), "a_shape(sink=4,window=16)")
    assert parse("roles") == (ANALYSIS, {})
    words, given = parse("roles(parts=[repeats,needles],policy=a_shape(sink=4,window=16),bos=added)")
    assert words.settle(given) == words.settle(
        {"parts": ("repeats", "needles"), "policy": "a_shape(sink=4,window=16)", "bos": "added"}
    )
    with pytest.raises(ValueError, match="values are numbers, words, calls"):
        parse("roles(half=20+30)")


def test_two_analyses_of_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "twice_named"
    folder.mkdir()
    for name in ("one", "two"):
        (folder / f"{name}.py").write_text(
            "from sparselens.analyses.roles.question import ANALYSIS as A\nANALYSIS = A\n"
        )
    (folder / "__init__.py").write_text("")
    (folder / "three.py").write_text("raise RuntimeError('has no ANALYSIS, is not imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match="two analyses are named 'roles'"):
        found_in(folder, "twice_named")


def test_many_intervals_at_once_are_those_of_one_at_a_time() -> None:
    values = np.random.default_rng(0).normal(size=(12, 3))
    names = list("aaabbcccddee")
    mean, low, high = clustered_means(values, names)
    for column in range(3):
        one = clustered_mean(values[:, column], names)
        assert (mean[column], low[column], high[column]) == pytest.approx((one.mean, one.low, one.high))
    assert np.isnan(clustered_means(values, ["a"] * 12)[1]).all()


def test_a_difference_between_gaps_is_not_taken_for_chance() -> None:
    values = np.repeat([[0.0], [1.0]], 4, axis=0)
    names = list("abcdefgh")
    mean, low, high = clustered_means(values, names, strata=[0] * 4 + [1] * 4)
    assert (mean[0], low[0], high[0]) == (0.5, 0.5, 0.5)
    assert clustered_means(values, names)[2][0] > 0.7
    assert np.isnan(clustered_means(values, names, strata=[0] * 7 + [1])[1][0])


@pytest.mark.model
def test_the_known_heads_of_the_default_model(tmp_path: Path) -> None:
    """Induction L18H6 ≈ 0.9 and previous-token L16H0 ≈ 0.89, measured apart on the same weights."""
    session = load("smollm2-135m", progress=False)
    size = {"sequences": 4, "windows": 12, "texts": 1, "gaps": (0, 50), "parts": PATTERNS}
    dense = ANALYSIS.run(session, tmp_path / "t", **size)
    sparse = ANALYSIS.run(session, tmp_path / "t", policy="a_shape(sink=4,window=16)", **{**size, "gaps": 50})
    ask = (
        "SELECT 'L' || layer || 'H' || head, value FROM head_scores"
        " WHERE metric = $metric AND analysis_id = $id ORDER BY value DESC"
    )
    with connect(tmp_path / "t") as trace:

        def scores(metric: str, run_id: str = dense) -> dict[str, float]:
            return dict(trace.sql(ask, {"metric": metric, "id": run_id}, max_rows=None).rows)

        induction, previous = scores("induction"), scores("previous_token")
        assert next(iter(induction)) == "L18H6"
        assert induction["L18H6"] == pytest.approx(0.9, abs=0.05)
        assert next(iter(previous)) == "L16H0"
        assert previous["L16H0"] == pytest.approx(0.89, abs=0.05)
        assert scores("induction_min_gap")["L18H6"] > 0.8
        assert 0.6 < np.mean(list(scores("sink_rate").values())) < 0.8
        assert list(scores("induction_reachable", sparse).values()) == pytest.approx([3 / 50] * 270)
        assert max(scores("induction", sparse).values()) < 3 / 50 + 1e-6  # nothing but what is reachable
