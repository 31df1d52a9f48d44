"""What `analyse codes` prints: how well each score ranks the heads that matter, and these heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparselens.analyses.analysis import Shown
from sparselens.analyses.codes.rows import CONTROLS, LEARNED
from sparselens.storage.reader import connect
from sparselens.storage.trace import Trace

_EVALS = "SELECT metric, value, ci_low, ci_high, n, n_clusters FROM evals WHERE analysis_id = $analysis"
_HEADS = """
SELECT layer, head, metric, value, ci_low, ci_high FROM head_scores WHERE analysis_id = $analysis AND head IS NOT NULL
AND metric IN ('ablation_effect', 'code_unique', 'code_unique_base', 'code_agreement', 'code_separation')"""


def show(trace: Trace, analysis_id: str, options: Mapping[str, Any]) -> Shown:
    """Return a row a score; notes name the `top` heads by exact effect and by codes."""
    top = int(options.get("top", 5))
    run = trace.run(analysis_id)
    args, extra = run.record.args, run.record.extra
    with connect(trace.path) as connection:
        asked = {"analysis": analysis_id}
        evals, found = (
            connection.sql(text, asked, max_rows=None).arrow().to_pylist() for text in (_EVALS, _HEADS)
        )
    numbers = {row["metric"]: row for row in evals}
    rows = [_line(name, numbers, args["circuit"]) for name in (*LEARNED, *CONTROLS)]
    heads: dict[str, dict[str, Any]] = {}
    for row in found:
        heads.setdefault(row["metric"], {})[f"L{row['layer']}H{row['head']}"] = row
    notes = [
        f"{extra['n_pairs']} pairs of {args['task']} under {args['policy']}; of the positive prompts"
        f" {_said(numbers['choice_positive'])} have the answer before the foils, logit difference"
        f" {_said(numbers['logit_diff_positive'])}; on negative ones {_said(numbers['logit_diff_negative'])}",
        f"the heads that matter are those of largest |effect| when cut alone on {extra['n_truth']} prompts; intervals"
        f" are over heads, drawn among those that matter and among the others ({extra['n_heads']} heads)",
        f"{args['trials']} SAEs of {args['features']} features on {args['examples']} prompts under {args['base']}:"
        f" {numbers['sae_explained']['value']:.0%} of the variance of the other prompts explained,"
        f" {numbers['sae_l0']['value']:.1f} features active, {numbers['codes_a_head']['value']:.1f} codes a head",
    ]
    size = args["circuit"][0]
    for control in ("code_permuted", "write_change", "direct_effect", "depth"):
        row = numbers[f"auc_code_unique_minus_{control}_top{size}"]
        notes.append(f"code_unique − {control}, AUC of the top {size}: {_said(row)}")
    notes += [
        f"by {metric}: {_named(heads[metric], top)}"
        for metric in ("ablation_effect", "code_unique", "code_separation")
    ]
    if "code_agreement" in heads:
        notes.append(_agreement(list(heads["code_agreement"].values()), top))
    return Shown(rows, notes)


def _agreement(heads: list[dict[str, Any]], top: int) -> str:
    """Return how often heads have the same code under base and policy, and which have so least."""
    least = sorted(heads, key=lambda row: row["value"])
    if least[0]["value"] == 1:
        return "every code is the base's: does the policy drop anything on these prompts? give filler"
    mean = sum(row["value"] for row in least) / len(least)
    names = ", ".join(f"L{row['layer']}H{row['head']} {row['value']:.0%}" for row in least[:top])
    return (
        f"same code under base and policy in {mean:.0%} of positive prompts (mean over heads); least: {names}"
    )


def _line(name: str, numbers: Mapping[str, Any], sizes: list[int]) -> dict[str, Any]:
    """Return one score: its area for each size of the circuit, and its rank correlation with |effect|."""
    row: dict[str, Any] = {"score": name}
    for size in sizes:
        found = numbers[f"auc_{name}_top{size}"]
        row |= {f"auc_top{size}": found["value"], f"95 % top{size}": _interval(found)}
    return row | {"spearman": numbers[f"spearman_{name}"]["value"]}


def _named(scores: Mapping[str, Mapping[str, Any]], top: int) -> str:
    best = sorted(scores, key=lambda name: -abs(scores[name]["value"]))[:top]
    return ", ".join(f"{name} {scores[name]['value']:.3g}" for name in best)


def _interval(row: Mapping[str, Any]) -> str:
    low, high = row["ci_low"], row["ci_high"]
    return "" if low is None else f"[{low:.3f}, {high:.3f}]"


def _said(row: Mapping[str, Any]) -> str:
    return "unknown" if row["value"] is None else f"{row['value']:.3g} {_interval(row)}".strip()
