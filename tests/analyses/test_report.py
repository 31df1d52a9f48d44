"""The report says what the tables say: losses, heads, roles, repairs, prompts; what is missing has a command."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_trace import HEADS, HOSTILE, LAYERS, POLICIES, PROMPTS, analysis, error, loss, planted
from typer.main import get_command

from sparselens.analyses.interval import clustered_mean
from sparselens.analyses.report.number import interval, number, share
from sparselens.analyses.report.page import Cell, Missing, Page, Paragraph, Section, Table
from sparselens.analyses.report.report import page, report
from sparselens.analyses.report.text import plain
from sparselens.storage.reader import connect
from sparselens.workbench import cli

POLICY = "a_shape(sink=2,window=9)"
CLUSTERS = [f"family {prompt % 3}" for prompt in range(PROMPTS)]


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "trace"
    planted(path)
    return path


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    path = tmp_path_factory.mktemp("single") / "trace"
    return path, planted(path, runs=1)


@pytest.fixture
def own(single: tuple[Path, list[str]], tmp_path: Path) -> tuple[Path, list[str]]:
    """A planted trace that the test may add to: a base and one run."""
    return shutil.copytree(single[0], tmp_path / "trace"), single[1]


def section(found: Page, key: str) -> Section:
    return next(each for each in found.sections if each.key == key)


def tables(found: Page, key: str) -> list[Table]:
    return [block for block in section(found, key).blocks if isinstance(block, Table)]


def said(cell: Any) -> str:
    return plain(cell.words if isinstance(cell, Cell) else cell)


def rows(table: Table) -> dict[str, list[str]]:
    """The cells of each row by the row's name."""
    return {said(row[0]).strip(): [said(cell) for cell in row[1:]] for row in table.rows}


def titled(found: Page, key: str, words: str) -> Table:
    return next(table for table in tables(found, key) if words in table.caption)


def missing(found: Page, key: str) -> list[str]:
    """The commands that a section names."""
    blocks = section(found, key).blocks
    return [command for block in blocks if isinstance(block, Missing) for command in block.commands]


def test_losses_are_the_means_of_the_tables_with_intervals_over_families(trace: Path) -> None:
    found = page(trace, "dense", POLICIES)
    cost = rows(titled(found, "kept", "Base → run"))
    for run in (1, 2, 3):
        before = np.array([loss(prompt, 0) for prompt in range(PROMPTS)])
        after = np.array([loss(prompt, run) for prompt in range(PROMPTS)])
        assert cost["answer NLL, nats a token"][run] == f"{number(before.mean())} → {number(after.mean())}"
        kl = [np.mean(np.arange(6, 12) * 0.01 * run * (1 + prompt)) for prompt in range(PROMPTS)]
        assert cost["KL(base ‖ run), affected rows"][run] == interval(clustered_mean(kl, CLUSTERS))
        same = [1.0 if prompt == 0 else 10 / 11 for prompt in range(PROMPTS)]
        assert cost["same top-1 token, whole text"][run] == interval(
            clustered_mean(same, CLUSTERS), shares=True
        )
        assert cost["prompts answered, teacher-forced"][run] == "6 of 6 → 1 of 6"
        change = titled(found, "kept", "Base → run").rows[1][1 + run]
        expected = clustered_mean(after - before, CLUSTERS)
        assert isinstance(change, Cell)
        assert said(change) == interval(expected, sign=True)
        assert change.drawn == expected
    assert cost["answer NLL, nats a token"][0] == "6 prompts in 3 clusters"
    assert "prompts answered, generating" not in cost


def test_families_and_depths_have_rows_of_their_own(trace: Path) -> None:
    found = page(trace, "dense", POLICIES)
    family = rows(titled(found, "kept", "family"))
    assert list(family) == ["family 0", "family 1", "family 2"]
    mean = np.mean([loss(0, 1), loss(3, 1)])
    assert family["family 0"][1] == f"0.1 → {number(mean)}; 2 of 2 → 1 of 2"
    depth = rows(titled(found, "kept", "depth"))
    assert list(depth) == ["0.1", "0.9"]
    prompts = [1, 3, 5]
    change = clustered_mean(
        [loss(prompt, 1) - 0.1 for prompt in prompts], [CLUSTERS[prompt] for prompt in prompts]
    )
    after = np.mean([loss(prompt, 1) for prompt in prompts])
    assert depth["0.1"] == [
        "3",
        *[f"0.1 → {number(after)}, change {interval(change, sign=True)}; 3 of 3 → 0 of 3"],
        *depth["0.1"][2:],
    ]


def test_heads_have_their_interval_and_three_scopes(trace: Path) -> None:
    found = page(trace, "dense", POLICIES[:1], top=3)
    heads = rows(tables(found, "heads")[0])
    assert list(heads) == ["L1H2", "L1H1", "L1H0"]
    errors = [error(prompt, 1, 1, 2) for prompt in range(PROMPTS)]
    expected = clustered_mean(np.float32(errors), CLUSTERS)
    assert heads["L1H2"][0] == interval(expected)
    assert heads["L1H2"][1:3] == [number(expected.mean / 2)] * 2
    assert heads["L1H2"][3:6] == ["70.0 %", "40.0 %", "0.3"]
    cost = rows(titled(found, "kept", "Base → run"))
    assert cost["heads preserved (write_error < 0.1)"][1] == "3 of 6 (50.0 %)"
    assert cost["heads changed (write_error > 0.1)"][1] == "3 of 6 (50.0 %)"
    assert cost["heads whose interval holds both"][1] == "0 of 6 (0.0 %)"


def test_heads_of_a_real_capture_are_those_of_its_table(paired: list[Any]) -> None:
    found = page(paired[0].trace, "dense", [POLICY])
    with connect(paired[0].trace) as connection:
        stored = connection.sql(
            "SELECT 'L' || layer || 'H' || head, scope, avg(write_error), avg(kept_mass), avg(js) FROM diffs"
            " WHERE rows = 'span:answer' GROUP BY ALL"
        ).rows
    heads = rows(tables(found, "heads")[0])
    assert len(heads) == 8
    for name, scope, write_error, kept, _ in stored:
        at = {"end_to_end": 0, "local_mask": 1, "local_policy": 2}[scope]
        assert heads[name][at].split()[0] == number(write_error)
        if scope == "end_to_end":
            assert heads[name][3] == share(kept)
    assert "verified" in plain(tables(found, "ran")[1].columns[7])
    assert rows(tables(found, "ran")[1])[POLICY][6] == "3/3"


def test_one_run_and_three_run_side_by_side(trace: Path) -> None:
    one, three = page(trace, "dense", POLICIES[:1]), page(trace, "dense", POLICIES)
    assert len(one.lead) == 1
    assert plain(one.title) == f"{POLICIES[0]} against dense on planted"
    assert [plain(words).split(" kept")[0] for words in three.lead] == list(POLICIES)
    assert len(titled(three, "kept", "Base → run").columns) == 5
    beside = titled(three, "heads", "beside the others")
    assert [plain(each) for each in beside.columns[1:4]] == list(POLICIES)
    alone = rows(titled(one, "kept", "Base → run"))["answer NLL, nats a token"][1]
    assert rows(titled(three, "kept", "Base → run"))["answer NLL, nats a token"][1] == alone
    grids = [block for block in section(three, "heads").blocks if hasattr(block, "grids")]
    assert [len(grid.values) for grid in grids[0].grids] == [LAYERS * HEADS] * 3


def test_a_run_of_other_prompts_and_the_base_itself_are_refused(
    trace: Path, small: Any, prompts: Any, tmp_path: Path
) -> None:
    from sparselens.workbench.capture import capture

    with pytest.raises(ValueError, match="'dense' is the base itself"):
        report(trace, "dense", ["dense"])
    with pytest.raises(ValueError, match="named twice"):
        report(trace, "dense", [POLICIES[0], POLICIES[0]])
    with pytest.raises(ValueError, match="no run 'nothing'"):
        report(trace, "dense", ["nothing"])
    with pytest.raises(ValueError, match="no report format 'pdf'; there are text, markdown, html"):
        report(trace, "dense", POLICIES, form="pdf")
    with pytest.raises(ValueError, match="at least one run"):
        report(trace, "dense", [])
    capture(small, prompts[:1], [], tmp_path / "t", run_name="one", progress=False)
    capture(small, prompts[1:2], [], tmp_path / "t", run_name="two", progress=False)
    with pytest.raises(ValueError, match=r"'two' .*1 prompts\) ran no prompt of 'one'"):
        report(tmp_path / "t", "one", ["two"])


def test_what_is_missing_is_named_with_a_command_that_exists(trace: Path, paired: list[Any]) -> None:
    known = get_command(cli.application()).commands
    for path, runs in ((trace, POLICIES), (paired[0].trace, [POLICY])):
        found = page(path, "dense", runs)
        named = [command for each in found.sections for command in missing(found, each.key)]
        for part in ("restore", "ablate", "roles", "fidelity", "sinks"):
            assert any(f"analyse {part} " in command for command in named), part
        for command in named:
            words = shlex.split(command)
            options = {option for parameter in known[words[1]].params for option in parameter.opts}
            assert words[0] == "sparselens"
            assert {word for word in words if re.fullmatch("--[a-z-]+", word)} <= options, command
        assert any(f"--policy '{runs[-1]}'" in command for command in missing(found, "repair"))
    assert any("--verify" in command for command in missing(page(trace, "dense", POLICIES), "ran"))


def test_runs_captured_apart_are_told_as_far_as_they_go(apart: list[Any]) -> None:
    found = page(apart[0].trace, "first", ["second"])
    assert any(" diff " in command or " capture " in command for command in missing(found, "heads"))
    ran = [plain(block.words) for block in section(found, "ran").blocks if isinstance(block, Paragraph)]
    assert any("over the 5 prompts that base and run both have" in words for words in ran)
    assert "No losses" not in report(apart[0].trace, "first", ["second"])


def test_the_prompts_and_tokens_that_show_it_best_are_the_extremes(trace: Path) -> None:
    found = page(trace, "dense", POLICIES[:1])
    worst, best, tokens = tables(found, "prompts")
    assert [said(row[0]) for row in worst.rows] == ["p5", "p4", "p3"]
    assert said(best.rows[0][0]).startswith("<script>")
    assert [said(row[0]) for row in best.rows[1:]] == ["p1", "p2"]
    columns = [plain(each) for each in worst.columns]
    first = dict(zip(columns, [said(cell) for cell in worst.rows[0]], strict=True))
    assert first["answer"] == "t10 t11"
    assert first["base predicts"] == "t10 t11"
    assert first["run predicts"].startswith("t10<script>")
    assert first["answer NLL"] == f"0.1 → {number(loss(5, 1))}"
    assert first["depth"] == "0.1"
    assert [said(row[1]) for row in tokens.rows] == ["11", "10", "11", "10", "11"]
    assert [said(row[2]) for row in tokens.rows][:2] == [number(0.66), number(0.6)]
    assert said(tokens.rows[1][4]).startswith("… t0 t1")
    assert said(tokens.rows[0][5]) == "t11"


def restored(order: str, n_heads: int, value: float, **more: Any) -> dict[str, Any]:
    """One planted set of heads: a row of `interventions` by metric."""
    metrics = {
        "gap_closed": value,
        "answer_nll": 2.0 - value,
        "whole_answer": value / 2,
        "density": 0.5,
        **more,
    }
    return {"kind": "run_dense", "order_by": order, "n_heads": n_heads, "metrics": metrics}


def interventions(base_run: str, trials: list[dict[str, Any]], low: float = 0.1) -> dict[str, Any]:
    """Rows of trials as columns; intervals are ± `low`."""
    columns: dict[str, list[Any]] = {}
    for at, trial in enumerate(trials):
        for metric, value in trial["metrics"].items():
            row = {
                "base_run": base_run,
                "trial": at,
                "fold": trial.get("fold"),
                "kind": trial["kind"],
                "heads": trial.get("heads", []),
                "n_heads": trial["n_heads"],
                "order_by": trial["order_by"],
                "matched": trial.get("matched"),
                "draw": trial.get("draw"),
                "phase": "both",
                "metric": metric,
                "value": value,
                "n": 24,
                "n_clusters": 8,
                "ci_low": value - low,
                "ci_high": value + low,
                "prompt_set": "needles(length=12,n=24)",
                "definition": f"the {metric}",
            }
            for name, cell in row.items():
                columns.setdefault(name, []).append(cell)
    return columns


def controls() -> list[dict[str, Any]]:
    none = {"kind": "none", "order_by": None, "n_heads": 0, "metrics": {"answer_nll": 2.0, "gap": 1.9}}
    base = {"kind": "base", "order_by": None, "n_heads": 0, "metrics": {"answer_nll": 0.1}}
    return [none, base]


def test_repair_has_every_pooled_number_beside_random_heads_and_the_wider_policy(
    own: tuple[Path, list[str]],
) -> None:
    path, (_, run) = own
    drawn = [
        restored("random", 1, 0.9, gap_closed_over_random=0.9)
        | {"matched": "write_error", "draw": draw, "heads": ["L0H0"]}
        for draw in range(4)
    ]
    trials = [
        *controls(),
        restored("write_error", 1, 0.4, gap_closed_over_random=0.35),
        restored("write_error", 2, 0.8, gap_closed_over_random=0.75),
        restored("kept_mass", 1, 0.05),
        restored("random", 1, 0.03) | {"matched": "write_error"},
        {"kind": "policy", "order_by": None, "n_heads": 1, "metrics": {"gap_closed": 0.11, "density": 0.52}},
        restored("write_error", 1, 0.41) | {"fold": 0, "heads": ["L1H2"]},
        restored("write_error", 1, 0.39) | {"fold": 1, "heads": ["L1H1"]},
        *drawn,
    ]
    args = {"policy": POLICIES[0], "base": "dense", "draws": 4}
    analysis(path, "restore", POLICIES[0], args, {"interventions": interventions(run, trials)})
    found = page(path, "dense", POLICIES[:1])
    curve = titled(found, "repair", "Share of the gap")
    assert [plain(each) for each in curve.columns] == [
        "",
        "density",
        "by write_error",
        "by kept_mass",
        "random, layers as by write_error, mean of 4 draws",
        "all heads, wider policy",
    ]
    assert rows(curve) == {
        "1 head": [
            "50.0 %",
            "40.0 [30.0, 50.0] %",
            "5.0 [−5.0, 15.0] %",
            "3.0 [−7.0, 13.0] %",
            "11.0 [1.0, 21.0] %",
        ],
        "2 heads": ["50.0 %", "80.0 [70.0, 90.0] %", "–", "–", "–"],
    }
    over = rows(titled(found, "repair", "minus random"))
    assert [each[-1] for each in over.values()] == ["35.0 [25.0, 45.0] %", "75.0 [65.0, 85.0] %"]
    assert rows(titled(found, "repair", "answered"))["2 heads"][1] == "40.0 [30.0, 50.0] %"
    heads = titled(found, "repair", "The heads")
    assert said(heads.rows[0][3]) == "in all 2 folds: none; in some: L1H2, L1H1"
    lead = plain(found.lead[0])
    assert "1 heads" not in lead
    assert "1 head given back closes 40.0 [30.0, 50.0] % of it" in lead
    assert "24 prompts in 8 clusters" in lead
    assert "1 random one 3.0 [−7.0, 13.0] %" in lead
    assert not any("analyse restore" in command for command in missing(found, "repair"))
    assert any("analyse ablate" in command for command in missing(found, "repair"))


@pytest.mark.slow
def test_what_restore_and_ablate_store_is_in_the_report(
    paired: list[Any], small: Any, tmp_path: Path
) -> None:
    from sparselens.analyses.analysis import analyses

    path = shutil.copytree(paired[0].trace, tmp_path / "trace")
    needles = "needles(length=200,n=4,chat=False{})"
    asked = {
        "policy": POLICY,
        "prompts": needles.format(""),
        "ranked_on": needles.format(",seed=2"),
        "orders": ("write_error",),
        "counts": (1, 2),
        "random_at": (1,),
        "matched": ("write_error",),
        "draws": 2,
    }
    for name in ("restore", "ablate"):
        analyses()[name].run(small, path, **asked, **({"check": 0} if name == "restore" else {}))
    found = page(path, "dense", [POLICY])
    with connect(path) as connection:
        stored = connection.sql(
            "SELECT metric, n_heads, order_by, value FROM interventions WHERE fold IS NULL AND draw IS NULL"
            " AND metric IN ('gap_closed', 'nll_rise') AND kind <> 'policy'"
        ).rows
    curves = {
        "gap_closed": rows(titled(found, "repair", "Share of the gap")),
        "nll_rise": rows(titled(found, "repair", "Rise of answer NLL")),
    }
    assert len(stored) == 6
    for metric, n_heads, order, value in stored:
        cells = curves[metric]["1 head" if n_heads == 1 else "2 heads"]
        at = (1 if metric == "gap_closed" else 0) + (order == "random")
        expected = share(value) if metric == "gap_closed" else number(value, sign=True)
        assert cells[at].split(" [")[0] == expected.removesuffix(" %")
    assert missing(found, "repair") == []


def test_a_gap_that_cannot_be_told_from_zero_is_no_headline(own: tuple[Path, list[str]]) -> None:
    path, (_, run) = own
    none = {"kind": "none", "order_by": None, "n_heads": 0, "metrics": {"answer_nll": 0.15, "gap": 0.05}}
    trials = [none, restored("write_error", 1, 0.9)]
    analysis(
        path, "restore", POLICIES[0], {"policy": POLICIES[0]}, {"interventions": interventions(run, trials)}
    )
    found = page(path, "dense", POLICIES[:1])
    assert "given back" not in plain(found.lead[0])
    assert "cannot be told from 0" in report(path, "dense", POLICIES[:1])


def test_heads_cut_in_the_base_are_told_with_the_run_whose_policy_ranked_them(
    trace: Path, tmp_path: Path
) -> None:
    path = shutil.copytree(trace, tmp_path / "trace")
    base = "20260101T000000-planted0"
    cut = {"kind": "mean", "order_by": "write_error", "n_heads": 1, "metrics": {"nll_rise": 1.25}}
    args = {"policy": POLICIES[1], "base": "dense"}
    analysis(path, "ablate", "dense", args, {"interventions": interventions(base, [*controls(), cut])})
    found = page(path, "dense", POLICIES[:2])
    assert rows(titled(found, "repair", "Rise of answer NLL"))["1 head"] == ["+1.25 [+1.15, +1.35]"]
    again = [command for command in missing(found, "repair") if "analyse ablate" in command]
    assert len(again) == 1
    assert POLICIES[0] in again[0]


def role_scores(run: str, scale: float = 1.0, **more: Any) -> dict[str, Any]:
    """Head L1H2 induces, L1H1 retrieves, all sink a little."""
    scores = {
        (1, 2, "induction"): 0.8 * scale,
        (1, 2, "induction_gap0"): 0.8 * scale,
        (1, 2, "induction_gap50"): 0.7 * scale,
        (1, 1, "retrieval"): 0.6,
        **{(layer, head, "sink_rate"): 0.2 for layer in range(LAYERS) for head in range(HEADS)},
    }
    places = list(scores)
    return {
        "run_id": run,
        "layer": [layer for layer, _, _ in places],
        "head": [head for _, head, _ in places],
        "metric": [metric for _, _, metric in places],
        "value": list(scores.values()),
        "n": 10,
        "n_clusters": 5,
        "prompt_set": "repeats",
        "rows": "all",
        "params": "{}",
        "definition": "planted",
    } | more


def test_roles_say_what_their_heads_lost_and_how_many_keep_them(own: tuple[Path, list[str]]) -> None:
    path, (base, run) = own
    analysis(path, "roles", "dense", {}, {"head_scores": role_scores(base)})
    found = page(path, "dense", POLICIES[:1])
    induction = rows(tables(found, "roles")[0])["induction (induction ≥ 0.4 at every gap)"]
    errors = clustered_mean(np.float32([error(prompt, 1, 1, 2) for prompt in range(PROMPTS)]), CLUSTERS)
    assert induction == ["1: L1H2", interval(errors)]
    assert any("analyse roles" in command for command in missing(found, "roles"))
    heads = rows(tables(found, "heads")[0])
    assert heads["L1H2"][-1] == "induction 0.80, sink_rate 0.20"
    analysis(path, "roles", POLICIES[0], {}, {"head_scores": role_scores(run, 0.25)})
    found = page(path, "dense", POLICIES[:1])
    roles = rows(tables(found, "roles")[0])
    assert roles["induction (induction ≥ 0.4 at every gap)"][1].endswith("score 0.8 → 0.2, 0 of 1 keep it")
    assert roles["retrieval (retrieval > 0.1)"][1].endswith("score 0.6 → 0.6, 1 of 1 keep it")
    assert not any("--policy" in command for command in missing(found, "roles"))


def test_scores_of_other_prompts_are_not_set_beside_the_bases(own: tuple[Path, list[str]]) -> None:
    path, (base, run) = own
    analysis(path, "roles", "dense", {}, {"head_scores": role_scores(base)})
    other = role_scores(run, 0.25, prompt_set="repeats(length=9)")
    analysis(path, "roles", POLICIES[0], {}, {"head_scores": other})
    roles = rows(tables(page(path, "dense", POLICIES[:1]), "roles")[0])
    assert "score" not in roles["induction (induction ≥ 0.4 at every gap)"][1]


def test_scores_that_heads_were_ranked_by_are_no_roles(own: tuple[Path, list[str]]) -> None:
    path, (base, _) = own
    ranking = role_scores(base, params='{"fold": 0, "ranking": true}')
    analysis(path, "ablate", "dense", {"policy": POLICIES[0]}, {"head_scores": ranking})
    found = page(path, "dense", POLICIES[:1])
    assert not tables(found, "roles")


def evals(run: str, task: str, values: dict[str, float]) -> dict[str, Any]:
    """Planted evaluations: intervals are ± 10 %."""
    return {
        "run_id": run,
        "task": task,
        "metric": list(values),
        "value": list(values.values()),
        "n": 6,
        "n_clusters": 3,
        "ci_low": [0.9 * value for value in values.values()],
        "ci_high": [1.1 * value for value in values.values()],
    }


def test_fidelity_stands_beside_its_noise_floor(own: tuple[Path, list[str]]) -> None:
    path, (_, run) = own
    values = {
        "kl": 0.5,
        "noise_kl": 2e-9,
        "noise_kl_bfloat16": 0.001,
        "kl_answer": 3.0,
        "noise_kl_answer": 4e-9,
        "kl_at_0_127": 0.25,
        "kl_at_128_255": 0.75,
        "retained_retrieval": 0.4,
    }
    floor = {
        "run_id": run,
        "layer": [0, 0, 1],
        "head": [0, 1, 0],
        "metric": "noise_write_error",
        "value": [9.0, 1e-9, 1e-9],
        "n": 6,
        "n_clusters": 3,
        "rows": "span:answer",
        "params": "{}",
        "definition": "floor",
    }
    told = {"definitions": {"retained_retrieval": "what is left of it"}}
    scores = {"evals": evals(run, "fidelity", values), "head_scores": floor}
    analysis(path, "fidelity", POLICIES[0], {"run": run}, scores, **told)
    analysis(path, "mine", POLICIES[0], {}, {"evals": evals(run, "a task", {"score": 7.0})})
    found = page(path, "dense", POLICIES[:1])
    beside = rows(titled(found, "kept", "noise floor"))
    over = "6 prompts in 3 clusters"
    assert beside == {
        "KL(base ‖ run), whole text": [over, "0.5 [0.45, 0.55]; floor 2e−09, 0.001 (bfloat16)"],
        "KL(base ‖ run), answer": [over, "3 [2.7, 3.3]; floor 4e−09"],
    }
    needles = rows(titled(found, "kept", "Needle runs"))
    assert needles == {"retained_retrieval": [over, "0.4 [0.36, 0.44]"]}
    positions = rows(titled(found, "kept", "by position"))
    assert {name: cells[1].split()[0] for name, cells in positions.items()} == {
        "0–127": "0.25",
        "128–255": "0.75",
    }
    others = rows(titled(found, "kept", "Evaluations"))
    assert others == {"score (a task)": ["6 observations in 3 clusters", "7 [6.3, 7.7]"]}
    cost = rows(titled(found, "kept", "Base → run"))
    assert cost["heads at or under their noise floor"] == ["span:answer", "1 of 3"]
    assert rows(tables(found, "ran")[1])[POLICIES[0]][-2] == "kl 2e−09; kl, bfloat16 0.001"
    assert rows(tables(found, "method")[0])["retained_retrieval (fidelity)"] == ["what is left of it"]
    assert not any(
        "analyse fidelity" in command for key in ("kept", "ran") for command in missing(found, key)
    )


def test_evaluations_of_another_run_of_the_policy_are_not_this_runs(own: tuple[Path, list[str]]) -> None:
    path, _ = own
    values = evals("another", "fidelity", {"kl": 0.5})
    analysis(path, "fidelity", POLICIES[0], {"run": "another"}, {"evals": values})
    found = page(path, "dense", POLICIES[:1])
    assert not [table for table in tables(found, "kept") if "noise floor" in table.caption]
    assert any("analyse fidelity --run" in command for command in missing(found, "kept"))


def test_sinks_of_base_and_run_stand_beside_each_other(own: tuple[Path, list[str]]) -> None:
    path, _ = own
    found = page(path, "dense", POLICIES[:1])
    table = tables(found, "sinks")[0]
    assert rows(table)["dense"][0] == "50.0 %"
    assert rows(table)[POLICIES[0]] == ["40.0 %", "L1H2 +0.22, L0H2 +0.2, L1H1 +0.12"]


def test_the_sinks_of_a_real_capture_are_those_of_the_analysis(paired: list[Any]) -> None:
    from sparselens.analyses.analysis import analyses

    trace = paired[0].trace
    analyses()["sinks"].run(None, trace, run=paired[1].run_id, window=16, epsilon=0.1)
    found = rows(titled(page(trace, "dense", [POLICY]), "sinks", "Sinks of base and run"))
    with connect(trace) as connection:
        stored = connection.sql("SELECT metric, value FROM evals WHERE task = 'sinks'").rows
    values = dict(stored)
    assert {"sink_rate", "sink_change", "sink_kept"} <= set(found)
    for metric, cells in found.items():
        assert cells[0].split()[0] == number(values[metric]), metric


def test_the_report_says_that_a_failed_check_is_not_to_be_trusted(
    small: Any, prompts: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparselens.workbench import verify
    from sparselens.workbench.capture import capture

    monkeypatch.setattr(verify, "NLL", -1.0)
    capture(small, prompts[:2], [POLICY], tmp_path / "t", verify=True, progress=False)
    found = page(tmp_path / "t", "dense", [POLICY])
    assert "A CHECK OF THIS RUN FAILED" in plain(found.lead[0])
    assert "FAILED: logits" in report(tmp_path / "t", "dense", [POLICY])


def test_a_packed_trace_without_texts_is_reported_on(trace: Path, tmp_path: Path) -> None:
    from sparselens.storage.pack import pack

    pack(trace, tmp_path / "packed.duckdb", strip_text=True)
    text = report(tmp_path / "packed.duckdb", "dense", POLICIES)
    assert "answer NLL, nats a token" in text
    assert HOSTILE[:8] not in text


def test_the_report_needs_no_model() -> None:
    import subprocess
    import sys

    code = (
        "import sys, sparselens.analyses.report.report, sparselens.analyses.report.html\n"
        "print(sorted({'torch', 'transformers', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
