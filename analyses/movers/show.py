"""What `analyse movers` prints: the heads of largest direct effect by source, and what cutting them does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparselens.analyses.analysis import Shown
from sparselens.storage.reader import connect
from sparselens.storage.trace import Run, Trace

_HEADS = """
SELECT layer, head, metric, value, ci_low, ci_high FROM head_scores
WHERE analysis_id = $analysis AND head IS NOT NULL ORDER BY metric, layer, head"""
_EVALS = "SELECT metric, value, ci_low, ci_high, n, n_clusters FROM evals WHERE analysis_id = $analysis"
_CUTS = """
SELECT kind, order_by, metric, value, ci_low, ci_high, n, n_clusters FROM interventions
WHERE analysis_id = $analysis AND fold IS NULL ORDER BY trial, metric"""


def show(trace: Trace, analysis_id: str, options: Mapping[str, Any]) -> Shown:
    """Return the `top` heads by direct effect, or by QK-score where nothing else was measured, and notes.

    Under a policy they are those of the base: what it takes from them is what is asked.
    """
    top = int(options.get("top", 5))
    with connect(trace.path) as connection:
        asked = {"analysis": analysis_id}
        found, evals, cuts = (
            connection.sql(text, asked, max_rows=None).arrow().to_pylist() for text in (_HEADS, _EVALS, _CUTS)
        )
    heads: dict[str, dict[str, Any]] = {}
    for row in found:
        heads.setdefault(f"L{row['layer']}H{row['head']}", {})[row["metric"]] = row
    run = trace.run(analysis_id)
    numbers = {row["metric"]: row for row in evals}
    order = "direct" if any("direct" in scores for scores in heads.values()) else "qk_accuracy_end"
    before = f"{order}_base" if any(f"{order}_base" in scores for scores in heads.values()) else order
    ranked = sorted(heads, key=lambda name: -_value(heads[name], before))
    rows = [_line(name, heads[name], order) for name in ranked[:top]]
    return Shown(rows, _notes(run, numbers, cuts))


def _value(scores: Mapping[str, Any], metric: str) -> float:
    return float(scores[metric]["value"]) if metric in scores else float("-inf")


def _line(name: str, scores: Mapping[str, Any], order: str) -> dict[str, Any]:
    """Return one head: its number with the interval, the parts of it, where it looks, and what is kept of that."""
    row = {"head_name": name, order: scores[order]["value"], "95 %": _interval(scores[order])}
    if f"{order}_change" in scores:
        change = scores[f"{order}_change"]
        row |= {f"{order}_base": scores[f"{order}_base"]["value"], "change": change["value"]}
        row["change 95 %"] = _interval(change)
    for start in ("direct_", "attention_", "kept_", "qk_"):
        some = [metric for metric in scores if metric.startswith(start) and metric != order]
        if start == "kept_" and all(scores[metric]["value"] == 1 for metric in some):
            continue
        row |= {
            metric: round(scores[metric]["value"], 4)
            for metric in some
            if not metric.endswith(("_base", "_change"))
        }
    return row


def _interval(row: Mapping[str, Any]) -> str:
    low, high = row["ci_low"], row["ci_high"]
    return "" if low is None else f"[{low:.3f}, {high:.3f}]"


def _said(row: Mapping[str, Any]) -> str:
    return f"{row['value']:.3g} {_interval(row)}".strip()


def _notes(run: Run, evals: Mapping[str, Any], cuts: list[dict[str, Any]]) -> list[str]:
    """Return what the rows are over, what the model answers, what was cut, and what the row still sees."""
    args, extra = run.record.args, run.record.extra
    sparse = args["policy"] != args["base"]
    notes = [
        f"{extra['n_answered']} of {extra['n_prompts']} prompts of {args['prompts']} are answered under {args['base']};"
        " heads are measured on these alone" + (f", under {args['policy']}" if sparse else "")
    ]
    if extra["not_applicable"]:
        notes = [extra["not_applicable"]]
    by_group = [
        f"{name.removeprefix('answered_')} {row['value']:.0%} of {row['n']}"
        for name, row in evals.items()
        if name.startswith("answered_")
    ]
    if by_group:
        notes.append("answered: " + ", ".join(by_group))
    if sparse:
        notes.append(
            f"right as the first token / among answer and foils: {_said(evals['first_token_base'])} /"
            f" {_said(evals['choice_base'])} under the base, {_said(evals['first_token'])} / {_said(evals['choice'])}"
            " under the policy (all prompts)"
        )
        lost = [
            f"{name.removeprefix('kept_').removesuffix('_any')} {row['value']:.0%}"
            for name, row in evals.items()
            if name.startswith("kept_") and name.endswith("_any")
        ]
        notes.append("share of prompts in which some head keeps some of it at END: " + ", ".join(lost))
        if all(row["value"] == 1 for name, row in evals.items() if name.startswith("kept_")):
            notes.append("the policy drops nothing at END on these prompts: give filler, or a tighter policy")
    notes += _effects(evals, sparse=sparse) + _cut(args, extra, cuts)
    for metric, best in extra.get("best", {}).items():
        found = evals[f"{metric}_best"]
        notes.append(
            f"{metric}: {best['head']}, best on the validation groups ({best['validation']:.0%}), is right in"
            f" {_said(found)} of the others' prompts (n {found['n']})"
        )
    return notes


def _effects(evals: Mapping[str, Any], *, sparse: bool) -> list[str]:
    """Return the logit difference and what all heads write of it."""
    if "logit_diff" not in evals:
        return []
    parts = [
        f"{name.removeprefix('direct_heads_')} {row['value']:.2f}"
        for name, row in evals.items()
        if name.startswith("direct_heads_") and not name.endswith("_base")
    ]
    words = (
        f"logit difference {_said(evals['logit_diff'])}, of which all heads write {_said(evals['direct_heads'])} at END"
        f" themselves, from {', '.join(parts)}"
    )
    if sparse:
        words += f"; it changes by {_said(evals['logit_diff_change'])} from {_said(evals['logit_diff_base'])}"
    return [words]


def _cut(args: Mapping[str, Any], extra: Mapping[str, Any], cuts: list[dict[str, Any]]) -> list[str]:
    """Return what cutting the chosen heads and random ones does."""
    if not cuts:
        return []
    found = {(row["order_by"], row["metric"]): row for row in cuts}
    mine, others = found["direct", "logit_diff_fall"], found["random", "logit_diff_fall"]
    over = found["direct", "logit_diff_fall_over_random"]
    return [
        f"the {args['heads']} heads of largest direct effect, chosen on the other half of the groups, cut: the logit"
        f" difference falls by {_said(mine)}; {args['draws']} random sets of the same layers: {_said(others)};"
        f" difference {_said(over)} (n {mine['n']}, {mine['n_clusters']} groups)",
        *(f"cut in half {number}: {' '.join(heads)}" for number, heads in enumerate(extra["cut"])),
    ]
