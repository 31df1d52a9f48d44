"""`analyse roles`: which heads look at the token before, copy after a repetition, sink, stay local or look far.

Everything is measured on the pattern that the policy executed, streaming, without a map. Induction and duplicate
scores are measured at several gaps between the two halves: a head that looks back by a fixed number of tokens has a
high score at one gap and none at the others, and is no induction head.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparselens.analyses.analysis import Analysis, Findings, Setting, Shown
from sparselens.analyses.interval import clustered_means
from sparselens.analyses.pattern_scores import TARGETS
from sparselens.analyses.role_labels import THRESHOLD, labels
from sparselens.analyses.role_plan import BOS, Material, Plan, Roles, planned
from sparselens.analyses.role_watch import FAR, SinkWatch, TargetWatch, TextWatch, Watch, watched
from sparselens.kernels.kernel import Kernel
from sparselens.kernels.policy import parse as parse_policy
from sparselens.storage.reader import connect
from sparselens.storage.trace import Trace
from sparselens.workbench.encoder import Encoder
from sparselens.workbench.progress import Progress
from sparselens.workbench.session import Session


@dataclass(frozen=True)
class Measured:
    """A metric of every head: mean and interval `[heads]`, the rows and sequences behind it, and what it is."""

    metric: str
    mean: Any
    low: Any
    high: Any
    n: int
    n_clusters: int
    prompt_set: str
    rows: str
    definition: str
    params: dict[str, Any]


DEFINITIONS = {
    "previous_token": "mean over rows q ≥ 1 of the attention to q − 1, on repeated random tokens, all gaps",
    "duplicate_token": "mean over second-half rows of the attention to the same token's earlier place, all gaps",
    "induction": "mean over second-half rows of the attention to the token after the same token's earlier place, "
    "all gaps",
    "sink_rate": "share of prose windows in which the first key holds more than epsilon of the attention of the "
    "queries that see it (Sink_1^ε, threshold per window, then the mean)",
    "sink_alpha": "mean over prose windows of the attention to the first key, over the queries that see it",
    "sink_rate_other": "share of prose windows in which some later key but the last 8 holds more than epsilon",
    "local_mass": f"mean attention to the last {FAR} keys, rows from {FAR} on of prose",
    "global_mass": f"mean attention beyond the last {FAR} keys, the first token left out, rows from {FAR} on",
    "sink_mass": f"mean attention to the first token, rows from {FAR} on of prose",
    "entropy_norm": f"mean entropy ÷ ln(kept keys), rows from {FAR} on of prose",
    "distance": f"mean distance to the attended key in tokens, rows from {FAR} on of prose",
}


def find(setting: Setting) -> Findings:
    """Measure every head of the setting's model."""
    chosen: Roles = setting.parameters
    if setting.session is None:
        raise ValueError("roles are measured on a model")
    session, plan = setting.session, planned(setting.session, chosen)
    with Progress(sum(len(each.prompts) for each in plan.all), plan.tokens, enabled=setting.progress) as bar:
        measured, share = measure(session, plan, chosen, chosen.kernel, bar)
    policy = parse_policy(chosen.policy)
    record = {
        "policy": chosen.policy,
        "policy_json": json.dumps(policy.to_json()),
        "policy_hash": policy.hash,
        "policy_source": policy.source_code if ".py:" in chosen.policy else None,
        "phase": policy.phase,
        "off_label": policy.off_label,
        "lookahead": policy.lookahead,
        "dense_call_share": share,
        "kernel": chosen.kernel,
        "seed": chosen.seed,
        "prompt_set": ", ".join(each.call for each in plan.all),
        "extra": {"ids_hash": plan.ids_hash},
    }
    return Findings([("head_scores", _columns(each, session.n_heads)) for each in measured], record)


def measure(
    session: Session, plan: Plan, chosen: Roles, kernel: Kernel | str, bar: Progress
) -> tuple[list[Measured], float]:
    """Return every metric of every head, and the share of attention calls that the policy left dense."""
    conventions = {
        "policy": chosen.policy,
        "pattern": "executed",
        "bos": chosen.bos,
        "opening": list(Encoder(session.tokenizer, bos=BOS[chosen.bos]).opening()),
        "seed": chosen.seed,
    }
    calls: list[tuple[int, int]] = []

    def numbers(material: Material, watch: Watch) -> dict[str, Any]:
        """Each of the watch's names as `[sequences, layers · heads]`."""
        bar.says(material.call)
        made = []
        counts = (0, 0)
        for prompt, values, execution in watched(session, chosen.policy, kernel, material.prompts, watch):
            made.append(values.flatten(0, 1).numpy())
            counts = (execution.dense_calls, execution.calls)
            bar.advance(len(prompt))
            bar.finished_prompt()
        calls.append(counts)
        return dict(zip(watch.names, np.moveaxis(np.stack(made), -1, 0), strict=True))

    by_gap = [numbers(material, TargetWatch()) for material in plan.repeats]
    on_windows = numbers(plan.windows, SinkWatch(chosen.epsilon))
    on_texts = numbers(plan.texts, TextWatch())
    found = _on_repeats(by_gap, plan.repeats, {**conventions, "half": chosen.half})
    found += [
        _measured(
            name, values, plan.windows, "all", DEFINITIONS[name], {**conventions, "epsilon": chosen.epsilon}
        )
        for name, values in on_windows.items()
    ]
    found += [
        _measured(
            name, values, plan.texts, f"from {FAR}", DEFINITIONS[name], conventions, each=chosen.length - FAR
        )
        for name, values in on_texts.items()
    ]
    return found, sum(dense for dense, _ in calls) / max(sum(all_calls for _, all_calls in calls), 1)


def _on_repeats(
    by_gap: Sequence[Mapping[str, Any]], materials: Sequence[Material], params: dict[str, Any]
) -> list[Measured]:
    """Return the three scores over all gaps, at each gap and at their worst gap, and what a policy could reach."""
    gaps = [material.gap for material in materials]
    calls = ", ".join(material.call for material in materials)
    whole = Material(calls, [prompt for material in materials for prompt in material.prompts])
    strata = [number for number, material in enumerate(materials) for _ in material.prompts]
    found = []
    for name in TARGETS:
        previous = name == "previous_token"
        rows = "all" if previous else "span:second"
        about = {**params, "gaps": gaps}
        each = 0 if previous else params["half"]
        together = np.concatenate([numbers[name] for numbers in by_gap])
        found.append(
            _measured(name, together, whole, rows, DEFINITIONS[name], about, each=each, strata=strata)
        )
        reachable = np.concatenate([numbers[f"{name}_reachable"] for numbers in by_gap])
        if reachable.min() < 1:
            definition = f"share of the rows of {name} whose target key the policy kept"
            found.append(
                _measured(
                    f"{name}_reachable", reachable, whole, rows, definition, about, each=each, strata=strata
                )
            )
        if previous:
            continue
        single = [
            _measured(
                f"{name}_gap{material.gap}",
                numbers[name],
                material,
                rows,
                DEFINITIONS[name].replace("all gaps", f"gap {material.gap}"),
                {**params, "gap": material.gap},
                each=each,
            )
            for numbers, material in zip(by_gap, materials, strict=True)
        ]
        found += [*single, _worst(f"{name}_min_gap", single, calls, about)]
    return found


def _worst(metric: str, single: Sequence[Measured], calls: str, params: dict[str, Any]) -> Measured:
    """Return the smallest of the means at single gaps, of each head, with the interval of that mean."""
    means = np.stack([each.mean for each in single])
    at = means.argmin(0)[None]

    def taken(name: str) -> Any:
        return np.take_along_axis(np.stack([getattr(each, name) for each in single]), at, 0)[0]

    return Measured(
        metric,
        taken("mean"),
        taken("low"),
        taken("high"),
        single[0].n,
        single[0].n_clusters,
        calls,
        single[0].rows,
        f"smallest of {metric.removesuffix('_min_gap')} at single gaps; the interval is that of the mean at that gap",
        params,
    )


def _measured(
    metric: str,
    values: Any,
    material: Material,
    rows: str,
    definition: str,
    params: dict[str, Any],
    *,
    each: int | None = None,
    strata: Sequence[int] | None = None,
) -> Measured:
    """Return mean and interval of `values [sequences, heads]`; `each`: rows a sequence, 0 for all but the first.

    Sequences are drawn within `strata`, where there are any.
    """
    names = [prompt.id for prompt in material.prompts]
    per = [1 if each is None else each or len(prompt) - 1 for prompt in material.prompts]
    mean, low, high = clustered_means(values, names, strata=strata)
    return Measured(metric, mean, low, high, sum(per), len(names), material.call, rows, definition, params)


def _columns(measured: Measured, heads: int) -> dict[str, Any]:
    """Return the rows of `head_scores` of one metric."""
    number = np.arange(len(measured.mean))
    return {
        "layer": (number // heads).astype(np.uint8),
        "head": (number % heads).astype(np.uint8),
        "metric": measured.metric,
        "value": measured.mean,
        "n": measured.n,
        "n_clusters": measured.n_clusters,
        "ci_low": measured.low,
        "ci_high": measured.high,
        "prompt_set": measured.prompt_set,
        "rows": measured.rows,
        "params": json.dumps(measured.params, sort_keys=True),
        "definition": measured.definition,
    }


def cost(setting: Setting) -> str:
    """Return what the analysis will run."""
    if setting.session is None:
        return "nothing"
    plan = planned(setting.session, setting.parameters)
    prompts = sum(len(each.prompts) for each in plan.all)
    return f"{prompts} prompts, {plan.tokens:,} tokens, {setting.session.n_layers} layers"


_BEST = """
SELECT metric, layer, head, 'L' || layer || 'H' || head AS head_name, value, ci_low, ci_high, n, n_clusters, rows
FROM head_scores WHERE analysis_id = $analysis ORDER BY metric, value DESC, layer, head
"""
_PRINTED = (*TARGETS, "sink_rate", "local_mass", "global_mass", "entropy_norm", "distance")


def show(trace: Trace, analysis_id: str, options: Mapping[str, Any]) -> Shown:
    """Return the `top` heads of each metric, with labels by the `threshold`, and the rules of these labels."""
    top, threshold = int(options.get("top", 5)), float(options.get("threshold", THRESHOLD))
    with connect(trace.path) as connection:
        found = connection.sql(_BEST, {"analysis": analysis_id}, max_rows=None).arrow().to_pylist()
    scores: dict[str, dict[str, float]] = {}
    for row in found:
        scores.setdefault(row["head_name"], {})[row["metric"]] = row["value"]
    rows = []
    for metric in _PRINTED:
        best = [row for row in found if row["metric"] == metric][:top]
        for row in best:
            head = scores[row["head_name"]]
            shown = {key: row[key] for key in ("metric", "head_name", "value", "ci_low", "ci_high")}
            shown |= {"min_gap": head.get(f"{metric}_min_gap"), "reachable": head.get(f"{metric}_reachable")}
            shown |= {"n": row["n"], "sequences": row["n_clusters"], "rows": row["rows"]}
            rows.append(shown | {"label": ", ".join(labels(head, threshold))})
    sinks = [head["sink_rate"] for head in scores.values()]
    notes = [
        _rules(threshold),
        f"sink_rate over all {len(sinks)} heads: {np.mean(sinks):.1%}",
        "labels are rules on these scores, not stored",
    ]
    return Shown(rows, notes)


def _rules(threshold: float) -> str:
    return (
        f"labels: previous-token heads score {threshold:g} or more; induction and duplicate-token heads do so at every"
        f" gap; one that does so at one gap and has less than {threshold / 4:g} at the others is a fixed-offset head"
    )


ANALYSIS = Analysis(
    name="roles",
    question="which heads are induction, previous-token, duplicate-token, sink, local or far-looking heads?",
    parameters=Roles,
    find=find,
    cost=cost,
    show=show,
)
