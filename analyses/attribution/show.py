"""What `analyse attribution` prints: the model's correlations and best heads, beside those of the dense model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparselens.analyses.analysis import Shown
from sparselens.analyses.comparison import queries
from sparselens.analyses.interval import clustered_mean
from sparselens.kernels.policy import parse as parse_policy
from sparselens.storage.reader import Connection, connect
from sparselens.storage.trace import Run, Trace

TASK = "attribution"
TOLERANCE = 0.05
"""Share of f(x) − f(baseline) that the path integral may miss before a note says so."""

_MODEL = (
    *(
        f"attribution_{stat}_{quantity}{method}{how}"
        for method in ("", "_ig")
        for quantity in ("attention", "value_weighted", "received")
        for stat, how in (
            ("spearman", ""),
            ("spearman", "_given_position"),
            ("spearman", "_with_first"),
            ("kendall", ""),
        )
    ),
    "attribution_spearman_recency",
    "attribution_spearman_recency_ig",
    "ig_ablation_spearman",
    "ig_ablation_spearman_signed",
    "attribution_on_dropped",
    "attribution_on_dropped_ig",
)
_HEADS = (
    "attribution_spearman_attention",
    "attribution_spearman_value_weighted",
    "attribution_spearman_attention_ig",
    "attribution_spearman_value_weighted_ig",
)


def show(trace: Trace, analysis_id: str, options: Mapping[str, Any]) -> Shown:
    """Return the model's numbers and the `top` heads; `dense` and `change` where the dense answer is in the trace."""
    run = trace.run(analysis_id)
    dense = dense_partner(trace, run)
    given = {"analysis": analysis_id, "dense": dense.run_id if dense else ""}
    with connect(trace.path) as connection:
        evals = {row["metric"]: row for row in _asked(connection, "evals", analysis=analysis_id)}
        before = {row["metric"]: row for row in _asked(connection, "evals", analysis=given["dense"])}
        changed = _asked(connection, "changes", **given)
        top = int(options.get("top", 5))
        heads = _asked(connection, "heads", **given, metrics=list(_HEADS), top=top)
    clusters: dict[str, str] = run.record.extra["clusters"]
    rows = []
    hidden = () if evals["dropped"]["value"] else ("attribution_on_dropped", "attribution_on_dropped_ig")
    for metric in (name for name in _MODEL if name in evals and name not in hidden):
        rows.append(_model_row(metric, "all heads", evals[metric], before.get(metric), changed, clusters))
        best = f"{metric}_best_head"
        if metric in _HEADS and best in evals:
            rows.append(_model_row(best, "best elsewhere", evals[best], before.get(best), changed, clusters))
    blank = {"change_low": None, "change_high": None}
    rows += [{**_ordered({**row, **blank})} for row in heads]
    if dense is None:
        rows = [{key: value for key, value in row.items() if key not in _COMPARED} for row in rows]
    return Shown(rows, _notes(run, dense, evals))


_COMPARED = ("dense", "change", "change_low", "change_high")


def _model_row(
    metric: str,
    unit: str,
    found: Mapping[str, Any],
    before: Mapping[str, Any] | None,
    changed: list[dict[str, Any]],
    clusters: Mapping[str, str],
) -> dict[str, Any]:
    """Return one line: the value, the dense one, and the change paired by prompt with its interval."""
    pairs = [(row["change"], clusters[row["prompt_id"]]) for row in changed if row["metric"] == metric]
    row = {**found, "metric": metric.removesuffix("_best_head"), "unit": unit}
    row |= dict.fromkeys(_COMPARED)
    if before is not None and pairs:
        change = clustered_mean([value for value, _ in pairs], [name for _, name in pairs])
        row |= {"dense": before["value"], "change": change.mean}
        row |= {"change_low": change.low, "change_high": change.high}
    return _ordered(row)


def _ordered(row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("metric", "unit", "value", "ci_low", "ci_high", *_COMPARED, "n", "n_clusters")
    return {name: row[name] for name in names}


def _notes(run: Run, dense: Run | None, evals: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return what must be known to read the numbers."""
    args, extra = run.record.args, run.record.extra
    used, unanswered = len(extra["clusters"]), len(extra["unanswered"])
    tokens = evals["compared_tokens"]["value"]
    notes = [
        f"{used} prompts of {args['prompts']} whose answer the dense model predicts; {unanswered} others left out",
        f"compared are the {tokens:.0f} tokens (mean) before the row that predicts the answer's first token; not its"
        " own token, special tokens, the chat template's words and the first token, which IG's baseline keeps;"
        " with_first adds the first token (ablation alone)",
        f"replaced by {args['replacement']!r} in both methods; absolute values unless a metric says signed; the policy"
        " selects anew at every forward pass, and its selection is a constant in gradients",
    ]
    notes += _chance(evals)
    if "completeness_error" in evals:
        notes.append(_completeness(evals["completeness_error"]["value"], args["steps"]))
    if args["policy"] != _dense():
        notes.append(
            f"under {args['policy']} the model still predicts {evals['answered']['value']:.0%} of the answers"
            f" and the answer's row sees {1 - evals['dropped']['value']:.0%} of the compared tokens"
        )
        notes.append(
            f"dense is run {dense.run_id}, paired by prompt"
            if dense
            else f"no dense answer to these arguments in this trace: analyse {TASK} with --policy dense to compare"
        )
    return notes


def _chance(evals: Mapping[str, Mapping[str, Any]]) -> list[str]:
    shuffled = evals.get("attribution_spearman_attention_shuffled")
    if shuffled is None:
        return []
    high = evals["attribution_spearman_attention_shuffled_high"]["value"]
    return [
        f"with shuffled attribution ρ with the mean attention is {shuffled['value']:.3f}, below {high:.3f} in 97.5 of"
        " 100 shuffles"
    ]


def _completeness(error: float, steps: int) -> str:
    """Return what the path integral missed, as a warning where that is over `TOLERANCE`."""
    said = f"integrated gradients miss {error:.1%} of f(x) − f(baseline) at {steps} steps (mean over prompts)"
    return (
        said
        if error <= TOLERANCE
        else f"WARNING: {said}, over {TOLERANCE:.0%}: raise steps, or read the ablation"
    )


def dense_partner(trace: Trace, run: Run) -> Run | None:
    """Return the newest complete dense run of the same question, model and other arguments; None for a dense run."""
    args = {**run.record.args, "policy": _dense()}
    if args == run.record.args:
        return None
    card = ("kind", "name", "weight_hash", "tokenizer_hash", "dtype")
    found = [
        each
        for each in trace.runs()
        if each.status == "complete"
        and each.record.args == args
        and all(getattr(each.record, name) == getattr(run.record, name) for name in card)
    ]
    return found[-1] if found else None


def _dense() -> str:
    return str(parse_policy("dense"))


def _asked(connection: Connection, name: str, **given: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (
        connection.sql(queries("attribution/attribution.sql")[name], given, max_rows=None).arrow().to_pylist()
    )
    return found
