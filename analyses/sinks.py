"""`analyse sinks`: where attention is parked, layer by layer, from the tables of a captured run. No model runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from sparselens.analyses.analysis import Analysis, Findings, Setting, Shown
from sparselens.analyses.comparison import queries
from sparselens.analyses.interval import clustered_mean
from sparselens.storage.reader import connect
from sparselens.storage.trace import Trace

EDGE = 8
"""The last keys of a prompt, which few queries see, are no sinks."""


@dataclass(frozen=True)
class Sinks:
    """`epsilon` and `window` as in Sink_1^ε; a later token is a sink where a layer's heads give it `received`."""

    run: str = "dense"
    epsilon: float = 0.3
    window: int = 64
    received: float = 0.1


DEFINITIONS = {
    "sink_rate": "share of heads and prompts in which the first key holds more than epsilon of the attention of the "
    "first `window` queries (Sink_1^ε)",
    "sink_alpha": "mean attention to the first key, over the first `window` queries, heads and prompts",
    "value_drain": "‖W_O^h v‖ at the first token ÷ its mean over the other tokens, mean over prompts",
    "residual_peak": "norm of the residual stream before the layer at the first token ÷ its mean over the others",
    "residual_peak_other": "largest such norm at a later token ÷ the median over later tokens",
    "other_sinks": "later tokens of a prompt, the last 8 left out, that receive more than `received` of the attention "
    "of the queries that see them, mean over heads",
}


_SAME = (
    "model",
    "model_revision",
    "weight_hash",
    "quantisation",
    "tokenizer_hash",
    "template_hash",
    "dtype",
    "policy",
    "policy_json",
    "policy_hash",
    "phase",
    "kernel",
    "prompt_set",
)
"""What the analysis run says about itself as the captured one does."""


def find(setting: Setting) -> Findings:
    """Reduce the tables of the run; `ValueError` says what to capture where they are empty."""
    chosen: Sinks = setting.parameters
    given = asdict(chosen) | {"edge": EDGE}
    with connect(setting.trace.path) as connection:
        rows = connection.sql(queries("sinks.sql")["numbers"], given, max_rows=None).arrow().to_pylist()
    run = setting.trace.run(chosen.run).record
    if not any(row["metric"] == "sink_rate" for row in rows):
        raise ValueError(
            f"run {chosen.run} has no prompt of {chosen.window} tokens in row_stats: capture longer prompts, such as"
            f" --prompts 'prose(length={chosen.window},n=32)', or say sinks(window=…)"
        )
    groups: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["metric"], row["layer"], row["head"]), []).append(row)
    params = json.dumps(
        {**asdict(chosen), "edge": EDGE, "policy": run.policy, "pattern": "executed"}, sort_keys=True
    )
    columns = [_row(*key, rows=found, params=params) for key, found in groups.items()]
    table = {name: [row[name] for row in columns] for name in columns[0]}
    record = {name: getattr(run, name) for name in _SAME} | {"parents": [run.run_id]}
    return Findings([("head_scores", table)], record)


def _row(
    metric: str, layer: int, head: int, *, rows: Sequence[Mapping[str, Any]], params: str
) -> dict[str, Any]:
    """Return the row of `head_scores` of one metric of a layer (head −1) or a head."""
    found = clustered_mean([row["value"] for row in rows], [row["cluster"] for row in rows])
    return {
        "layer": layer,
        "head": None if head < 0 else head,
        "metric": metric,
        "value": found.mean,
        "n": sum(row["n"] for row in rows),
        "n_clusters": found.n_clusters,
        "ci_low": found.low,
        "ci_high": found.high,
        "prompt_set": ", ".join(dict.fromkeys(str(row["prompt_set"]) for row in rows)),
        "rows": "all",
        "params": params,
        "definition": DEFINITIONS[metric],
    }


def cost(setting: Setting) -> str:
    """Return what the analysis will read."""
    run = setting.trace.run(setting.parameters.run)
    return f"tables of {run.record.name} ({run.run_id}), {len(run.prompt_ids)} prompts"


def show(trace: Trace, analysis_id: str, options: Mapping[str, Any]) -> Shown:
    """Return a row a layer; notes on the layers that sink and on the later tokens that do."""
    args = trace.run(analysis_id).record.args
    with connect(trace.path) as connection:
        layers = connection.sql(queries("sinks.sql")["layers"], {"analysis": analysis_id}).arrow().to_pylist()
        given = {
            "run": args["run"],
            "received": args["received"],
            "edge": EDGE,
            "top": int(options.get("top", 5)),
        }
        tokens = connection.sql(queries("sinks.sql")["tokens"], given).arrow().to_pylist()
    rate = float(np.mean([row["sink_rate"] for row in layers]))
    strong = [row["layer"] for row in layers if row["sink_rate"] >= 0.5]
    said = ", ".join(f"{row['text']!r} ({row['times']} in {row['layers']} layers)" for row in tokens)
    return Shown(
        layers,
        [
            f"sink_rate over all layers: {rate:.1%} (epsilon {args['epsilon']}, first {args['window']} rows)",
            f"layers in which at least half of the heads sink: {_ranges(strong) or 'none'}",
            f"later tokens that receive more than {args['received']}: {said or 'none'}",
        ],
    )


def _ranges(numbers: Sequence[int]) -> str:
    """Numbers in order as `3–9, 12–29`."""
    if not numbers:
        return ""
    breaks = [at for at, (a, b) in enumerate(pairwise(numbers), start=1) if b != a + 1]
    runs = [numbers[a:b] for a, b in pairwise([0, *breaks, len(numbers)])]
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


ANALYSIS = Analysis(
    name="sinks",
    question="in which layers is attention parked on the first token or another one, and what is written there?",
    parameters=Sinks,
    find=find,
    cost=cost,
    show=show,
    needs_model=False,
)
