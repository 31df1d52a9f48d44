"""What `analyse restore` and `analyse ablate` share: finding, cost, and what is printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sparselens.analyses.analysis import Findings, Setting, Shown
from sparselens.analyses.cause.check import checked
from sparselens.analyses.cause.plan import GIVEN, Cause, Fold, cluster, folds, moved, planned
from sparselens.analyses.cause.ranking import DEFINITIONS, ROWS
from sparselens.analyses.cause.rows import prompt_rows, rows_of, table
from sparselens.analyses.cause.run import Study, Tested
from sparselens.analyses.measured import Measured
from sparselens.kernels.policy import Policy
from sparselens.kernels.policy import parse as parse_policy
from sparselens.storage.reader import connect
from sparselens.storage.trace import Trace
from sparselens.workbench.intervention import RESTORES
from sparselens.workbench.progress import Progress
from sparselens.workbench.run_card import policy_card


def find(setting: Setting, under: str) -> Findings:
    """Run the test on the policy `under`, and return its rows."""
    chosen: Cause = setting.parameters
    policy = parse_policy(under)
    units, tokens = work(setting)
    with Progress(units, tokens, enabled=setting.progress) as bar:
        study = Study(setting.model, chosen, policy, setting.ledger, bar)
        parts = study.run()
        extra, more = checked(study, parts) if chosen.check and study.restores else ({}, [])
    rows: list[tuple[str, dict[str, Any]]] = [
        ("interventions", table(rows_of(parts, chosen, restores=study.restores))),
        ("intervention_prompts", prompt_rows(parts)),
        *[("head_scores", each.columns(setting.model.n_layers)) for each in _rankings(parts, chosen)],
        *more,
    ]
    tested = [prompt for part in parts for prompt in part.fold.tested]
    return Findings(rows, _record(policy, chosen) | {"extra": {**_said(parts), **extra}}, tested)


def _record(policy: Policy, chosen: Cause) -> dict[str, Any]:
    """Return what the run's record says about the policy that was intervened on."""
    return {
        **policy_card(policy),
        "kernel": chosen.kernel,
        "seed": chosen.seed,
        "prompt_set": chosen.prompts,
    }


def _said(parts: Sequence[Tested]) -> dict[str, Any]:
    """Return what stands behind the rankings and the controls, for the record."""
    return {
        "folds": [
            {
                "tested": sorted({cluster(prompt) for prompt in part.fold.tested}),
                "n_tested": len(part.fold.tested),
                "n_ranking": len(part.fold.ranking),
                "n_answered": part.n_answered,
                "moved": _moved(part),
                "wider": {str(count): str(policy) for count, policy in part.widened.items()},
            }
            for part in parts
        ]
    }


def _moved(part: Tested) -> dict[str, float]:
    """Return how many random heads of a set had to be taken from a neighbouring layer, mean over draws."""
    found: dict[str, list[int]] = {}
    for trial, heads in part.heads.items():
        if trial.order_by == "random":
            mine = part.heads[replace(trial, order_by=trial.matched, matched=None, draw=None)]
            found.setdefault(f"{trial.matched} {trial.n_heads}", []).append(moved(mine, heads))
    return {name: sum(each) / len(each) for name, each in found.items()}


def _rankings(parts: Sequence[Tested], chosen: Cause) -> list[Measured]:
    """Return the scores that the heads were ranked by, of each fold."""
    made = []
    for part in parts:
        for order, scores in part.scores.items():
            nothing = np.full_like(scores, np.nan, dtype=float)
            n = part.n_answered if order == "retrieval" else len(part.fold.ranking)
            groups = {prompt.group for prompt in part.fold.ranking}
            params = {"policy": chosen.policy, "base": chosen.base, "fold": part.fold.number, "ranking": True}
            made.append(
                Measured(
                    order,
                    scores,
                    nothing,
                    nothing,
                    n,
                    len(groups),
                    chosen.ranked_on,
                    ROWS.get(order, "span:answer"),
                    DEFINITIONS[order],
                    params,
                )
            )
    return made


def work(setting: Setting) -> tuple[int, int]:
    """Return prompts, and the tokens of all forward passes (an upper bound: unchanged layers are not run again)."""
    chosen: Cause = setting.parameters
    halves = folds(setting.model, chosen)
    trials = len(planned(chosen)) + (len(chosen.counts) if chosen.kind == "run_dense" else 0)
    tested = [prompt for fold in halves for prompt in fold.tested]
    ranking = [prompt for fold in halves for prompt in fold.ranking]
    passes = (
        (2 if chosen.ranks else 1) + 2 * ("retrieval" in chosen.orders) + 3 * ("estimate" in chosen.orders)
    )
    tokens = trials * sum(map(len, tested)) + passes * sum(map(len, ranking))
    return len(tested) + len(ranking), tokens


def cost(setting: Setting) -> str:
    """Return what the analysis will run."""
    chosen: Cause = setting.parameters
    halves = folds(setting.model, chosen)
    _, tokens = work(setting)
    tested = sum(len(fold.tested) for fold in halves)
    return (
        f"{tested} prompts × up to {len(planned(chosen))} trials,"
        f" {_ranked_on(chosen, halves)}: at most {tokens:,} tokens through {setting.model.n_layers}"
        " layers; an interrupted run goes on where it stopped"
    )


def _ranked_on(chosen: Cause, halves: Sequence[Fold]) -> str:
    """Return on how many prompts heads are ranked, or what they are instead."""
    n = sum(len(fold.ranking) for fold in halves)
    if chosen.ranks:
        return f"rankings on {n}"
    return f"heads given, means on {n}" if n else "heads given, none ranked"


_SHOWN = """
SELECT kind, order_by, n_heads, matched, metric, value, ci_low, ci_high, n, n_clusters
FROM interventions WHERE analysis_id = $analysis AND fold IS NULL AND draw IS NULL ORDER BY trial
"""
_HEADS = """
SELECT DISTINCT fold, order_by, n_heads, heads FROM interventions
WHERE analysis_id = $analysis AND fold IS NOT NULL AND order_by IS NOT NULL AND order_by <> 'random'
ORDER BY order_by, fold, n_heads DESC
"""


_COLUMNS = (
    "value",
    "95 %",
    "over_random",
    "over_random 95 %",
    "answer_nll",
    "first_token",
    "whole_answer",
    "density",
)


def show(trace: Trace, analysis_id: str, options: Mapping[str, Any]) -> Shown:
    """Return a row for every set of heads, both folds together, and notes on what was ranked and tested."""
    del options
    record = trace.run(analysis_id).record
    with connect(trace.path) as connection:
        found = connection.sql(_SHOWN, {"analysis": analysis_id}, max_rows=None).arrow().to_pylist()
        heads = connection.sql(_HEADS, {"analysis": analysis_id}, max_rows=None).arrow().to_pylist()
    told = "gap_closed" if record.args["kind"] in RESTORES else "nll_rise"
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in found:
        key = (row["kind"], row["order_by"], row["matched"], row["n_heads"])
        cell = rows.setdefault(
            key,
            {"what": row["kind"], "order": _order(row), "heads": row["n_heads"], **dict.fromkeys(_COLUMNS)},
        )
        name = {told: "value", f"{told}_over_random": "over_random"}.get(row["metric"], row["metric"])
        if name in cell:
            cell[name] = row["value"]
        if name in ("value", "over_random"):
            cell["95 %" if name == "value" else f"{name} 95 %"] = _interval(row)
    named = [{told if name == "value" else name: cell for name, cell in row.items()} for row in rows.values()]
    return Shown(named, [*_notes(record.args, record.extra, found), *_named(heads)])


def _order(row: Mapping[str, Any]) -> str:
    return f"random, as {row['matched']}" if row["order_by"] == "random" else (row["order_by"] or "")


def _interval(row: Mapping[str, Any]) -> str:
    low, high = row["ci_low"], row["ci_high"]
    return "" if low is None else f"[{low:.3f}, {high:.3f}]"


def _notes(
    args: Mapping[str, Any], extra: Mapping[str, Any], found: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Return what was tested on what, and how the one-pass estimate did."""
    n, clusters = (found[0]["n"], found[0]["n_clusters"]) if found else (0, 0)
    made = [
        f"{args['kind']}, phase {args['phase']}, policy {args['policy']} against {args['base']}; {n} prompts in"
        f" {clusters} groups; intervals: 95 % bootstrap over groups, paired by prompt",
    ]
    made += [_gap(row) for row in found if row["metric"] == "gap"]
    for number, fold in enumerate(extra.get("folds", [])):
        words = f"fold {number}: tested on {', '.join(fold['tested'])} ({fold['n_tested']} prompts)"
        for matched, away in fold.get("moved", {}).items():
            if away:
                words += f"; of the random heads as {matched}, {away:g} stand in a neighbouring layer"
        if list(args["orders"]) != [GIVEN]:
            words += f", ranked on the others ({fold['n_ranking']} prompts, {fold['n_answered']} answered by the base)"
        made.append(words)
    if "estimate" in extra:
        made.append(extra["estimate"]["words"])
    return made


def _gap(row: Mapping[str, Any]) -> str:
    """Return how large the gap is that shares are taken of; none is worth nothing."""
    words = f"the gap: answer NLL rises by {row['value']:.3g} {_interval(row)} nats a token from the base to the run"
    if row["value"] <= 0 or (row["ci_low"] is not None and row["ci_low"] <= 0):
        return f"{words}; it cannot be told from 0, so shares of it mean nothing: choose a tighter policy"
    return words


def _named(heads: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the largest ranked set of each order and fold."""
    seen: set[tuple[Any, Any]] = set()
    made = []
    for row in heads:
        if (row["order_by"], row["fold"]) not in seen:
            seen.add((row["order_by"], row["fold"]))
            made.append(f"by {row['order_by']}, fold {row['fold']}: {' '.join(row['heads'])}")
    return made
