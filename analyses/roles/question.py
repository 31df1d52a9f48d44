"""`analyse roles`: which heads copy, look at the token before, retrieve, sink, sleep, and what each is worth.

Everything is measured on the pattern that the policy executed, streaming, without a map; one file a part. Induction and
duplicate scores are measured at several gaps between the two halves: a head that looks back by a fixed number of tokens
has a high score at one gap and none at the others, and is no induction head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sparselens.analyses.analysis import Analysis, Findings, Setting, Shown
from sparselens.analyses.measured import Measured
from sparselens.analyses.pattern_scores import TARGETS
from sparselens.analyses.roles.ground import Ground
from sparselens.analyses.roles.importance import on_ablation
from sparselens.analyses.roles.labels import THRESHOLD, labels, rules
from sparselens.analyses.roles.pattern import on_code, on_repeats, on_texts, on_windows
from sparselens.analyses.roles.plan import Plan, Roles, planned
from sparselens.analyses.roles.retrieval import on_needles
from sparselens.analyses.roles.state import on_states
from sparselens.kernels.kernel import Kernel
from sparselens.kernels.policy import parse as parse_policy
from sparselens.storage.reader import connect
from sparselens.storage.trace import Trace
from sparselens.workbench.progress import Progress
from sparselens.workbench.run_card import policy_card
from sparselens.workbench.session import Session

MEASUREMENTS: dict[str, Callable[[Ground], list[Measured]]] = {
    "repeats": on_repeats,
    "windows": on_windows,
    "texts": on_texts,
    "code": on_code,
    "needles": on_needles,
    "states": on_states,
    "importance": on_ablation,
}


def find(setting: Setting) -> Findings:
    """Measure every head of the setting's model."""
    chosen: Roles = setting.parameters
    session, plan = setting.model, planned(setting.model, chosen)
    units, tokens = plan.work(chosen, session.n_layers, session.n_heads)
    with Progress(units, tokens, enabled=setting.progress) as bar:
        ground = Ground(session, chosen, plan, chosen.kernel, bar, setting.ledger)
        found = measure(ground)
    record = {
        **policy_card(parse_policy(chosen.policy)),
        "dense_call_share": ground.dense_calls / max(ground.calls, 1),
        "kernel": chosen.kernel,
        "seed": chosen.seed,
        "prompt_set": ", ".join(each.call for each in plan.all),
        "extra": {"ids_hash": plan.ids_hash, **ground.notes},
    }
    return Findings([("head_scores", each.columns(session.n_layers)) for each in found], record)


def measure(ground: Ground) -> list[Measured]:
    """Return every metric of every head, part by part."""
    return [each for part in ground.chosen.parts for each in MEASUREMENTS[part](ground)]


def measured_on(session: Session, plan: Plan, chosen: Roles, kernel: Kernel | str) -> list[Measured]:
    """Return every metric, computed by a kernel that is given, kept nowhere."""
    with Progress(0, 0, enabled=False) as bar:
        return measure(Ground(session, chosen, plan, kernel, bar))


def cost(setting: Setting) -> str:
    """Return what the analysis will run."""
    session, chosen = setting.model, setting.parameters
    plan = planned(session, chosen)
    _, tokens = plan.work(chosen, session.n_layers, session.n_heads)
    prompts = sum(len(each.prompts) for each in plan.all)
    words = f"{prompts} prompts, {tokens:,} tokens through {session.n_layers} layers"
    if "importance" in chosen.parts:
        words += (
            f", {session.n_layers * session.n_heads} heads ablated one by one (about half of the layers each)"
        )
    return words


_SCORES = """
SELECT metric, layer, head, 'L' || layer || 'H' || head AS head_name, value, ci_low, ci_high, n, n_clusters, rows
FROM head_scores WHERE analysis_id = $analysis AND head IS NOT NULL ORDER BY metric, value DESC, layer, head
"""
_LAYERS = """
SELECT layer, max(value) FILTER (WHERE metric = 'massive') AS massive,
       max(value) FILTER (WHERE metric = 'massive_ratio') AS ratio,
       max(value) FILTER (WHERE metric = 'massive_first') AS first,
       max(value) FILTER (WHERE metric = 'massive_dimension')::INT AS dimension
FROM head_scores WHERE analysis_id = $analysis AND head IS NULL GROUP BY layer ORDER BY layer
"""
PRINTED = (
    *TARGETS,
    "retrieval",
    "retrieval_find",
    "retrieval_copy",
    "sink_rate",
    "local_mass",
    "global_mass",
    "entropy_norm",
    "distance",
    "importance",
)


def show(trace: Trace, analysis_id: str, options: Mapping[str, Any]) -> Shown:
    """Return the `top` heads of each metric, with labels by the `threshold`, and the rules of these labels."""
    top, threshold = int(options.get("top", 5)), float(options.get("threshold", THRESHOLD))
    with connect(trace.path) as connection:
        asked = {"analysis": analysis_id}
        found = connection.sql(_SCORES, asked, max_rows=None).arrow().to_pylist()
        layers = connection.sql(_LAYERS, asked, max_rows=None).arrow().to_pylist()
    scores: dict[str, dict[str, float]] = {}
    for row in found:
        scores.setdefault(row["head_name"], {})[row["metric"]] = row["value"]
    rows = []
    for metric in PRINTED:
        for row in [row for row in found if row["metric"] == metric][:top]:
            head = scores[row["head_name"]]
            shown = {key: row[key] for key in ("metric", "head_name", "value", "ci_low", "ci_high")}
            shown |= {"min_gap": head.get(f"{metric}_min_gap"), "reachable": head.get(f"{metric}_reachable")}
            shown |= {"n": row["n"], "clusters": row["n_clusters"], "rows": row["rows"]}
            rows.append(shown | {"label": ", ".join(labels(head, threshold))})
    extra = trace.run(analysis_id).record.extra
    return Shown(rows, [*rules(threshold), *_counts(scores), *_retrieved(extra), *_massive(layers)])


def _counts(scores: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return how many heads sink and sleep."""
    sinks = [head["sink_rate"] for head in scores.values() if "sink_rate" in head]
    named = [labels(head) for head in scores.values()]
    found = [f"sink_rate over all {len(sinks)} heads: {np.mean(sinks):.1%}"] if sinks else []
    for label in ("retrieval head", "dormant head", "active–dormant head"):
        heads = sum(any(each.startswith(label) for each in labelled) for labelled in named)
        if heads:
            found.append(f"{label}s: {heads} of {len(scores)}")
    return [*found, "labels are rules on these scores, not stored"]


def _retrieved(extra: Mapping[str, Any]) -> list[str]:
    """Return how many needle runs stand behind the retrieval scores."""
    runs = extra.get("needles")
    if runs is None:
        return []
    words = f"needles: the base answered {runs['n_answered']} of {runs['n_runs']} runs"
    if not runs["n_answered"]:
        return [f"{words}: no retrieval score (shorter needles: needle_length=…; another model)"]
    return [f"{words} ({runs['n_verbatim']} word by word); the others are left out of retrieval scores"]


def _massive(layers: list[dict[str, Any]]) -> list[str]:
    """Return where massive activations stand, by the rule of Sun et al."""
    there = [row for row in layers if row["massive"] is not None]
    if not there:
        return []
    massive = [row for row in there if row["massive"] > 100 and row["ratio"] >= 1000]
    largest = max(there, key=lambda row: row["massive"])
    words = (
        f"largest activation: {largest['massive']:,.0f} before layer {largest['layer']}, dimension"
        f" {largest['dimension']}, {largest['ratio']:,.0f} × the median, at the first token in {largest['first']:.0%}"
    )
    where = ", ".join(str(row["layer"]) for row in massive) or "none"
    return [words, f"layers with massive activations (> 100 and ≥ 1,000 × the median): {where}"]


ANALYSIS = Analysis(
    name="roles",
    question="which heads copy, look back, retrieve, sink or sleep, and what is each worth?",
    parameters=Roles,
    find=find,
    cost=cost,
    show=show,
)
