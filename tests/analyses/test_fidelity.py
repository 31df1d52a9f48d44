"""Fidelity is 0 where nothing differs, finds what was planted in a model, and agrees with a slow second way."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from copy_model import copy_prompts, copy_session
from small_model import save_small_model
from small_tokenizer import small_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

from sparselens.analyses.fidelity import question as module
from sparselens.analyses.fidelity.interval import means, ratios
from sparselens.analyses.fidelity.needle import Needle, needle_numbers
from sparselens.analyses.fidelity.noise import Floor
from sparselens.analyses.fidelity.question import ANALYSIS
from sparselens.analyses.interval import DRAWS, clustered_mean
from sparselens.analyses.roles.question import ANALYSIS as ROLES
from sparselens.analyses.roles.retrieval import one_run
from sparselens.kernels.kernel import kernel
from sparselens.kernels.policy import parse
from sparselens.kernels.statistics import Want
from sparselens.storage.reader import connect
from sparselens.storage.trace import Trace
from sparselens.workbench.capture import capture
from sparselens.workbench.cli import main
from sparselens.workbench.models import wrap
from sparselens.workbench.session import attention_layers, under

POLICY = "a_shape(sink=2,window=9)"
FAR, NEAR = 10, 50
SEEN = "a_shape(sink=1,window=16)"
"""Under this policy the words at `NEAR` are still read from the end of the question, those at `FAR` are not."""


def ask(path: Any, text: str, **given: Any) -> list[tuple[Any, ...]]:
    with connect(path) as trace:
        return trace.sql(text, given, max_rows=None).rows


def evals(path: Any, analysis: str) -> dict[str, tuple[float, ...]]:
    """Value, interval and counts of every metric of a run."""
    text = "SELECT metric, value, ci_low, ci_high, n, n_clusters FROM evals WHERE analysis_id = $id"
    return {row[0]: row[1:] for row in ask(path, text, id=analysis)}


def heads(path: Any, analysis: str, metric: str, rows: str = "all") -> dict[tuple[int, int], float]:
    text = "SELECT layer, head, value FROM head_scores WHERE analysis_id = $id AND metric = $metric AND rows LIKE $rows"
    return {row[:2]: row[2] for row in ask(path, text, id=analysis, metric=metric, rows=rows)}


@pytest.fixture(scope="module")
def faithful(
    small: Any, prompts: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, str]]:
    """A trace of five policies against one base, and the fidelity of each by policy."""
    path = tmp_path_factory.mktemp("faithful") / "trace"
    policies = [POLICY, "dense", "a_shape(sink=4,window=300)"]
    policies += [f"oracle_mass(density={density})" for density in (0.1, 0.3, 0.6)]
    runs = capture(small, prompts, policies, path, progress=False)[1:]
    few = {"noise": 0, "dtype_noise": 0}
    return path, {
        policy: ANALYSIS.run(small, path, run=run.run_id, **(few if "oracle" in policy else {}))
        for policy, run in zip(policies, runs, strict=True)
    }


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Any, list[Any]]:
    """A model that copies, on needles of four words, each once in reach of the policy and once not."""
    session, path = copy_session(), tmp_path_factory.mktemp("copied") / "trace"
    needles = copy_prompts([(word, place) for word in (0, 5, 10, 15) for place in (FAR, NEAR)])
    run = capture(session, needles, [SEEN], path, progress=False)[1]
    return path, ANALYSIS.run(session, path, run=run.run_id), session, needles


@pytest.mark.parametrize("policy", ["dense", "a_shape(sink=4,window=300)"])
def test_dense_and_a_window_wider_than_the_prompt_are_at_zero(faithful: Any, policy: str) -> None:
    path, runs = faithful
    for rows in ("all", "span:answer"):
        errors, floor = (
            heads(path, runs[policy], name, rows) for name in ("write_error", "noise_write_error")
        )
        assert len(errors) == 8
        assert set(errors.values()) == {0.0}
        assert all(0 < floor[head] < 1e-5 for head in errors)
        assert set(heads(path, runs[policy], "kept_mass", rows).values()) == {1.0}
    found = evals(path, runs[policy])
    for name in ("kl", "kl_answer", "nll_change", "nll_change_abs"):
        assert found[name][:3] == (0, 0, 0)
    assert found["top1_same"][:3] == (1, 1, 1)


def test_the_floor_is_the_bases_and_the_same_for_every_run(faithful: Any) -> None:
    path, runs = faithful
    runs = {policy: run for policy, run in runs.items() if "oracle" not in policy}
    for name in ("noise_write_error", "noise_write_error_bfloat16"):
        first, *others = (heads(path, run, name) for run in runs.values())
        assert len(first) == 8
        assert all(other == first for other in others)
    tokens = [{k: v for k, v in evals(path, run).items() if k.startswith("noise")} for run in runs.values()]
    assert all(other == tokens[0] for other in tokens)
    assert tokens[0]["noise_kl"][3] == 4
    assert tokens[0]["noise_kl_bfloat16"][3] == 2
    assert 0 < tokens[0]["noise_kl"][0] < 1e-5 < tokens[0]["noise_kl_bfloat16"][0] < 0.1


def test_more_density_is_less_kl(faithful: Any) -> None:
    path, runs = faithful
    kl = [evals(path, runs[f"oracle_mass(density={density})"])["kl"][0] for density in (0.1, 0.3, 0.6)]
    assert kl[0] > kl[1] > kl[2] > evals(path, runs["dense"])["kl"][0]


def test_a_heads_number_is_the_mean_over_prompts_of_what_the_capture_stored(faithful: Any) -> None:
    path, runs = faithful
    run = Trace.open(path).run(runs[POLICY]).record.parents[0]
    for scope, rows in (("end_to_end", "all"), ("local_mask", "affected"), ("local_policy", "span:answer")):
        stored = ask(
            path,
            "SELECT prompt_id, write_error, kept_mass FROM diffs WHERE run_b = $run AND scope = $scope"
            " AND rows = $rows AND layer = 1 AND head = 2",
            run=run, scope=scope, rows=rows,
        )  # fmt: skip
        group = dict(ask(path, "SELECT prompt_id, grp FROM prompts"))
        clusters = sorted(set(group.values()))
        drawn = np.random.default_rng(0).integers(0, len(clusters), (DRAWS, len(clusters)))
        for place, metric in enumerate(("write_error", "kept_mass"), start=1):
            total = {name: [row[place] for row in stored if group[row[0]] == name] for name in clusters}
            draws = []
            for draw in drawn.tolist():
                values = [value for number in draw for value in total[clusters[number]]]
                draws.append(sum(values) / len(values))
            name = metric if scope == "end_to_end" else f"{metric}_{scope}"
            (found,) = ask(
                path,
                "SELECT value, ci_low, ci_high, n, n_clusters, params FROM head_scores WHERE analysis_id = $id"
                " AND metric = $name AND rows = $rows AND layer = 1 AND head = 2",
                id=runs[POLICY], name=name, rows=rows,
            )  # fmt: skip
            assert found[0] == pytest.approx(sum(row[place] for row in stored) / 6, rel=1e-6)
            assert found[1:3] == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), rel=1e-6)
            assert found[3:5] == (6, 3)
            assert json.loads(found[5])["scope"] == scope


def test_token_numbers_are_means_over_tokens_then_prompts(faithful: Any) -> None:
    path, runs = faithful
    run = Trace.open(path).run(runs[POLICY]).record.parents[0]
    tokens: dict[str, list[tuple[Any, ...]]] = {}
    for prompt, *row in ask(
        path,
        "SELECT prompt_id, pos, kl, nll_change, top1_same, affected FROM token_diffs WHERE run_b = $run",
        run=run,
    ):
        tokens.setdefault(prompt, []).append(tuple(row))
    answer = {
        row[0]: row[1:] for row in ask(path, "SELECT prompt_id, start, stop FROM spans WHERE name = 'answer'")
    }
    found = evals(path, runs[POLICY])

    def mean(column: int, keep: Any = lambda prompt, row: True) -> float:
        per_prompt = []
        for prompt, rows in tokens.items():
            values = [float(row[column]) for row in rows if keep(prompt, row)]
            per_prompt += [sum(values) / len(values)] if values else []
        return sum(per_prompt) / len(per_prompt)

    assert found["kl"][0] == pytest.approx(mean(1))
    assert found["kl_affected"][0] == pytest.approx(mean(1, lambda prompt, row: row[4]))
    assert found["nll_change_answer"][0] == pytest.approx(
        mean(2, lambda prompt, row: answer[prompt][0] <= row[0] < answer[prompt][1])
    )
    assert found["top1_same"][0] == pytest.approx(mean(3))
    assert found["kl_at_0_127"][0] == pytest.approx(mean(1, lambda prompt, row: row[0] < 128))
    assert found["affected_tokens"][0] == pytest.approx(mean(4))
    of_prompts = dict(
        ask(
            path, "SELECT prompt_id, value FROM prompt_scores WHERE analysis_id = $id AND metric = 'kl'",
            id=runs[POLICY],
        )
    )  # fmt: skip
    assert np.mean(list(of_prompts.values())) == pytest.approx(found["kl"][0])
    assert set(of_prompts) == set(tokens)


class Outputs:
    """An observer that keeps what every layer's heads hand on, computed as a capture does."""

    def __init__(self) -> None:
        self.layers: dict[int, torch.Tensor] = {}

    def want(self, call: Any) -> Any:
        return Want(frozenset({"entropy", "sink_mass", "top"}))

    def saw(self, call: Any, selection: Any, attended: Any) -> None:
        self.layers[call.layer] = attended.output[0].double()


@torch.no_grad()
def test_the_floor_is_what_two_plain_runs_differ_by(small: Any, prompts: Any) -> None:
    prompt = prompts[1]
    ids = torch.tensor([prompt.token_ids])
    coarse = copy.deepcopy(small.model)
    for parameter in coarse.parameters():
        parameter.data = parameter.data.bfloat16()
    seen, norms, logits = [], {}, []
    for model in (small.model, coarse):
        outputs = Outputs()
        handles = []
        for index, layer in enumerate(attention_layers(model)):

            def note(_: Any, __: Any, output: torch.Tensor, index: int = index) -> None:
                norms.setdefault(index, output[0].norm(dim=-1).mean().item())

            handles.append(layer.o_proj.register_forward_hook(note))
        with under(model, "dense", observers=[outputs]):
            logits.append(model(input_ids=ids).logits[0, :-1].double())
        for handle in handles:
            handle.remove()
        seen.append(outputs.layers)
    numbers = Floor(small, parse("dense"), kernel("blocked")).numbers(prompt, dtype=True)
    for index, layer in enumerate(attention_layers(small.model)):
        weight = layer.o_proj.weight.double().T.reshape(4, -1, 32)
        change = torch.linalg.vector_norm((seen[1][index] - seen[0][index]) @ weight, dim=-1)
        expected = (change.mean(-1) / norms[index]).numpy()
        assert numbers["dtype write_error all"][index] == pytest.approx(expected, rel=1e-4)
    p, q = (torch.log_softmax(each, -1) for each in logits)
    kl, _, same = numbers["dtype tokens"]
    # logits are float32 there and double here: 3,000 terms of p · (ln p − ln q) round to less than 1e-6 nats
    assert kl == pytest.approx((p.exp() * (p - q)).sum(-1).numpy(), rel=1e-3, abs=1e-6)
    assert same.tolist() == (p.argmax(-1) == q.argmax(-1)).tolist()


def test_the_model_is_as_before_when_its_floor_has_been_measured(small: Any, prompts: Any) -> None:
    before = {name: tensor.clone() for name, tensor in small.model.state_dict().items()}
    floor = Floor(small, parse("dense"), kernel("blocked"))
    floor.numbers(prompts[0], dtype=True)
    assert floor._copy is not None
    floor.close()
    assert floor._copy is None
    after = small.model.state_dict()
    assert all(
        torch.equal(tensor, after[name]) and after[name].dtype == tensor.dtype
        for name, tensor in before.items()
    )


def test_a_head_retains_what_it_can_still_reach(copied: Any) -> None:
    path, analysis, *_ = copied
    found = evals(path, analysis)
    assert found["retrieval_heads"][0] == 1
    for name in ("retained_retrieval", "retained_retrieval_find", "retained_retrieval_copy"):
        assert heads(
            path, analysis, name, "generated" if name == "retained_retrieval" else "span:answer"
        ) == {(1, 0): 0.5}
        assert found[name] == (0.5, 0.5, 0.5, 8, 4)  # every family has one needle in reach and one out of it
    for name in ("needle_kept", "sink_fallback", "needle_accuracy_free", "needle_accuracy_forced"):
        assert found[name][0] == 0.5
    assert found["needle_accuracy_free_base"][0] == found["needle_accuracy_forced_base"][0] == 1
    assert found["needle_mass_base"][0] == pytest.approx(1, abs=1e-6)
    assert found["needle_mass"][0] == pytest.approx(0.5, abs=1e-6)
    answered = ask(
        path,
        "SELECT p.name, s.value FROM prompt_scores s JOIN prompts p USING (prompt_id)"
        " WHERE analysis_id = $id AND metric = 'needle_accuracy_free'",
        id=analysis,
    )
    assert len(answered) == 8
    assert all(value == name.endswith(str(NEAR)) for name, value in answered)


def test_scores_on_needles_are_those_of_roles(copied: Any) -> None:
    _, _, session, needles = copied
    for needle in Needle.among(needles, 2):
        found = needle_numbers(session, needle, parse("dense"), parse(SEEN), kernel("blocked"), free=False)
        for side, policy in (("base", "dense"), ("run", SEEN)):
            same = one_run(session, needle.prompt, needle.place, "dense", policy, "blocked")
            assert same["produced"].tolist() == found["produced"].tolist()
            for name in ("retrieval", "retrieval_find", "retrieval_copy", "needle_mass", "needle_kept"):
                assert found[f"{side} {name}"].tolist() == same[name].tolist()


def test_answers_that_the_capture_generated_are_not_generated_again(
    copied: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, analysis, session, needles = copied
    run = capture(session, needles, [SEEN], tmp_path / "t", generate=3, progress=False)[1]
    monkeypatch.delattr("sparselens.analyses.fidelity.needle.answers_itself")
    again = ANALYSIS.run(session, tmp_path / "t", run=run.run_id, noise=1, dtype_noise=0)
    for name in ("needle_accuracy_free", "needle_accuracy_free_base"):
        assert evals(tmp_path / "t", again)[name] == evals(path, analysis)[name]
    # two tokens are not enough to have answered in three
    few = capture(session, needles, [SEEN], tmp_path / "few", generate=2, progress=False)[1]
    with pytest.raises(NameError):
        ANALYSIS.run(session, tmp_path / "few", run=few.run_id, noise=0, dtype_noise=0)


def test_other_roles_are_retained_where_both_were_measured_alike(
    small: Any, prompts: Any, tmp_path: Path
) -> None:
    path = tmp_path / "t"
    base, run = capture(small, prompts[:2], [POLICY], path, progress=False)
    quick = {"noise": 0, "dtype_noise": 0, "run": run.run_id}
    trace, args = Trace.open(path), {"parts": ("repeats",), "sequences": 2, "half": 20, "gaps": (0, 5)}
    notes = ANALYSIS.show(trace, ANALYSIS.run(small, path, **quick), {}).notes[-1]
    assert notes.count("sparselens analyse 'roles(parts=[\"repeats\"])'") == 2
    dense = ROLES.run(small, path, **args)
    ROLES.run(small, path, policy=POLICY, **{**args, "sequences": 3})
    notes = ANALYSIS.show(trace, ANALYSIS.run(small, path, again=True, **quick), {}).notes[-1]
    assert notes.count("sparselens analyse") == 1
    assert "half=20" in notes
    sparse = ROLES.run(small, path, policy=POLICY, **args)
    found = ANALYSIS.run(small, path, again=True, **quick)
    notes = " ".join(ANALYSIS.show(trace, found, {}).notes)
    assert "sparselens analyse" not in notes
    assert "measured under both, mean over heads" in notes
    before, after, kept = (
        heads(path, each, metric, "%")
        for each, metric in (
            (dense, "previous_token"),
            (sparse, "previous_token"),
            (found, "retained_previous_token"),
        )
    )
    assert kept
    assert kept == pytest.approx({head: after[head] / value for head, value in before.items() if value > 0.1})
    assert base.run_id in Trace.open(path).run(found).record.parents


def test_an_interrupted_analysis_goes_on_and_ends_the_same(
    copied: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, whole, session, _ = copied
    path = tmp_path / "trace"
    shutil.copytree(original, path)
    shutil.rmtree(path / "runs" / whole)
    run = next(run.run_id for run in Trace.open(path).runs() if run.record.parents)
    done: list[str] = []
    fails: set[int] = {2, 6}

    def counted(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if len(done) in fails:
                fails.remove(len(done))
                raise KeyboardInterrupt
            done.append(name)
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(Floor, "numbers", counted("floor", Floor.numbers))
    monkeypatch.setattr(module, "needle_numbers", counted("needle", needle_numbers))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            ANALYSIS.run(session, path, run=run)
    found = ANALYSIS.run(session, path, run=run)
    assert done == ["floor"] * 4 + ["needle"] * 8
    assert evals(path, found) == evals(original, whole)
    assert ANALYSIS.run(session, path, run=run) == found  # and is not asked again
    assert len(done) == 12


def test_the_order_of_the_prompts_does_not_matter(copied: Any, tmp_path: Path) -> None:
    path, analysis, session, needles = copied
    run = capture(session, needles[::-1], [SEEN], tmp_path / "t", progress=False)[1]
    again = ANALYSIS.run(session, tmp_path / "t", run=run.run_id)
    assert evals(tmp_path / "t", again) == evals(path, analysis)
    for name in ("write_error", "noise_write_error", "js_local_mask"):
        assert heads(tmp_path / "t", again, name) == heads(path, analysis, name)


def test_a_gpt2_can_be_measured(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=3000, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.2, attn_pdrop=0.0,
        resid_pdrop=0.0, embd_pdrop=0.0,
    )  # fmt: skip
    session = wrap(GPT2LMHeadModel(config).eval(), small_tokenizer())
    prompts = session.prompts(
        [{"id": f"p{n}", "text": "some words of a text, and " * 4 + str(n)} for n in range(3)]
    )
    run = capture(session, prompts, [POLICY], tmp_path / "t", progress=False)[1]
    found = ANALYSIS.run(session, tmp_path / "t", run=run.run_id, noise=2, dtype_noise=1)
    errors, floor = (heads(tmp_path / "t", found, name) for name in ("write_error", "noise_write_error"))
    assert len(errors) == len(floor) == 8
    assert all(errors[head] > floor[head] >= 0 for head in errors)
    shown = ANALYSIS.show(Trace.open(tmp_path / "t"), found, {"top": 3})
    assert len(shown.rows) == 3
    assert {row["n"] for row in shown.rows} == {3}
    assert "no needle prompts in this run" in " ".join(shown.notes)


def test_shown_are_the_worst_heads_beside_their_floor(faithful: Any, copied: Any) -> None:
    path, runs = faithful
    shown = ANALYSIS.show(Trace.open(path), runs[POLICY], {"top": 4})
    errors = heads(path, runs[POLICY], "write_error", "span:answer")
    assert [row["write_error"] for row in shown.rows] == sorted(errors.values(), reverse=True)[:4]
    floor = heads(path, runs[POLICY], "noise_write_error", "span:answer")
    first = shown.rows[0]["head_name"]
    assert shown.rows[0]["noise_kernel"] == floor[int(first[1]), int(first[3])]
    notes = " ".join(shown.notes)
    assert "kernel reference against blocked, float32 (4 prompts)" in notes
    assert "bfloat16 against float32, kernel blocked (2 prompts)" in notes
    assert "heads at or under their floor: 0 of 8" in notes
    assert "heads at or under their floor: 8 of 8" in " ".join(
        ANALYSIS.show(Trace.open(path), runs["dense"], {}).notes
    )
    notes = " ".join(ANALYSIS.show(Trace.open(copied[0]), copied[1], {}).notes)
    assert "the base answered 8 of 8 runs; 1 head retrieves there" in notes
    assert "generating by itself (generated): 100% → 50% of 8" in notes


def test_means_leave_gaps_out_and_ratios_are_of_means() -> None:
    values = np.array([[1.0, 2.0], [3.0, np.nan], [5.0, 4.0], [np.nan, 6.0]])
    names = ["a", "a", "b", "c"]
    found = means(values, names)
    for column in range(2):
        one = clustered_mean(values[:, column], names)
        assert (found.value[column], found.low[column], found.high[column]) == pytest.approx(
            (one.mean, one.low, one.high)
        )
        assert (found.n[column], found.n_clusters[column]) == (one.n, one.n_clusters)
    below = np.array([[1.0], [1.0], [2.0]])
    half = ratios(below / 2, below, ["a", "b", "c"])
    assert (half.value[0], half.low[0], half.high[0]) == (0.5, 0.5, 0.5)
    rare = ratios(np.array([[1.0], [0.0], [0.0]]), np.array([[1.0], [0.0], [0.0]]), ["a", "b", "c"])
    assert rare.value[0] == 1
    assert math.isnan(rare.low[0])  # 8 of 27 draws have no denominator


@contextmanager
def refused(words: str) -> Iterator[None]:
    with pytest.raises(ValueError, match=words):
        yield


def test_what_has_no_fidelity_is_refused_and_nothing_is_written(
    small: Any, paired: Any, apart: Any, faithful: Any, copied: Any
) -> None:
    path, base, run = paired[0].trace, paired[0].run_id, paired[1].run_id
    before = [run.run_id for run in Trace.open(path).runs()]
    with refused("is itself a base: give a run that was captured against it"):
        ANALYSIS.run(small, path, run=base)
    with refused(r"captured without its base.*sparselens diff .*sparselens capture .*--policy 'a_shape"):
        ANALYSIS.run(small, apart[1].trace, run="second")
    with refused("is a run of kind analysis"):
        ANALYSIS.run(small, faithful[0], run=faithful[1]["dense"])
    with refused("give --run"):
        ANALYSIS.run(small, path)
    with refused("dtype_noise ≤ noise"):
        ANALYSIS.run(small, path, run=run, noise=1)
    with refused("weight_hash"):
        ANALYSIS.run(copied[2], path, run=run)
    with refused("was captured in float32; the session is in float64"):
        double = replace(small, model=copy.deepcopy(small.model).double())
        ANALYSIS.run(double, path, run=run)
    with refused("runs a model"):
        ANALYSIS.run(None, path, run=run)
    assert [run.run_id for run in Trace.open(path).runs()] == before


def test_the_command_finds_the_recorded_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, path = str(save_small_model(tmp_path / "model")), str(tmp_path / "t")
    command = ["capture", model, "--prompts", "repeats(length=40,n=2)", "--trace", path, "--policy", POLICY]
    assert main([*command, "--run", "r"]) == 0
    analyse = ["analyse", "fidelity(noise=1,dtype_noise=0)", "--trace", path]
    assert main([*analyse, "--run", POLICY, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out[out.index("[") :])[0]["rows"] == "affected"
    assert "tables of 2 prompts; the base's noise floor on 1 prompt, run under two kernels; no needle" in err
    for more, words in (
        ([], "give --run"),
        (["--run", POLICY, "--dtype", "float32"], "leave --dtype and --revision out"),
        (["--run", "nothing"], "no run 'nothing'"),
    ):
        assert main([*analyse, *more]) == 2
        assert words in capsys.readouterr().err
    shutil.move(model, tmp_path / "moved")
    assert main([*analyse, "--run", POLICY, "--again"]) == 2
    assert "cannot be loaded as it was" in capsys.readouterr().err
    assert main([*analyse, "--run", POLICY, "--again", "--model", str(tmp_path / "moved")]) == 0
