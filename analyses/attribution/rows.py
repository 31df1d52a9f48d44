"""The rows that `analyse attribution` stores: of heads, of layers, of the model, of prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from sparselens.analyses.attribution.scores import held_out_best, metrics
from sparselens.analyses.attribution.show import TASK
from sparselens.analyses.interval import clustered_mean

Rows = tuple[str, dict[str, Any]]
_UNSTORED = ("shuffled", "calls", "dense_calls")


def head_scores(
    measured: Sequence[Mapping[str, Any]],
    clusters: Sequence[str],
    shape: tuple[int, int],
    methods: tuple[str, ...],
    about: Mapping[str, Any],
) -> list[Rows]:
    """Return the rows of every head, and (head NULL) of every layer's mean over heads; none where nothing has an order.

    `about`: `prompt_set`, and `params`, the conventions of all. A metric of a head is left out where no prompt has it:
    nothing mattered, or the head reads all tokens alike.
    """
    layers, heads = shape
    places: list[tuple[int, int | None]] = [(layer, head) for layer in range(layers) for head in range(heads)]
    places += [(layer, None) for layer in range(layers)]
    rows = []
    for metric in metrics(methods):
        values = np.stack([each[metric.name] for each in measured])
        own = {name: value for name, value in asdict(metric).items() if name not in ("stat", "quantity")}
        common = {
            "metric": metric.name,
            "prompt_set": about["prompt_set"],
            "rows": "all" if metric.quantity == "received" else "span:answer",
            "params": json.dumps({**about["params"], **own}, sort_keys=True),
            "definition": metric.definition,
        }
        for number, (layer, head) in enumerate(places):
            rows.append({"layer": layer, "head": head, **_interval(values[:, number], clusters), **common})
    there = [row for row in rows if row["n"]]
    return [("head_scores", _columns(there))] if there else []


def prompt_numbers(
    measured: Sequence[Mapping[str, Any]], clusters: Sequence[str], shape: tuple[int, int]
) -> dict[str, Any]:
    """Return `[prompts]` of every number of a prompt: of the mean over all heads, and those that are single.

    `…_best_head`: the head that is best on the other clusters. `…_shuffled`: the attribution in random order.
    """
    stored = [name for name in measured[0] if name not in _UNSTORED]
    found = {name: np.asarray([np.ravel(each[name])[-1] for each in measured], float) for name in stored}
    n_heads = shape[0] * shape[1]
    for name in stored:
        if name.startswith("attribution_spearman") and np.size(measured[0][name]) > 1:
            values = np.stack([each[name][:n_heads] for each in measured])
            found[f"{name}_best_head"] = held_out_best(values, clusters)
    found["attribution_spearman_attention_shuffled"] = np.asarray(
        [each["shuffled"][:, -1].mean() for each in measured]
    )
    return found


def evals(found: Mapping[str, Any], measured: Sequence[Mapping[str, Any]], clusters: Sequence[str]) -> Rows:
    """Return the model's numbers: means over prompts, and what chance reaches in 97.5 of 100 shuffles."""
    rows = [{"metric": name, **_interval(values, clusters)} for name, values in found.items()]
    control = np.stack([each["shuffled"][:, -1] for each in measured])
    control = control[~np.isnan(control).any(1)]
    if len(control):
        high = float(np.quantile(control.mean(0), 0.975))
        chance = {"value": high, "n": len(control), "n_clusters": None, "ci_low": None, "ci_high": None}
        rows.append({"metric": "attribution_spearman_attention_shuffled_high", **chance})
    return "evals", {"task": TASK, **_columns([row for row in rows if row["n"]])}


def prompt_scores(found: Mapping[str, Any], prompts: Sequence[str]) -> Rows:
    """Return the numbers of every prompt."""
    rows = [
        {"prompt_id": prompt, "metric": name, "value": float(values[number])}
        for name, values in found.items()
        for number, prompt in enumerate(prompts)
    ]
    return "prompt_scores", {"task": TASK, **_columns(rows)}


def _interval(values: Any, clusters: Sequence[str]) -> dict[str, Any]:
    """Return mean, interval and counts as columns; prompts without a value are left out."""
    found = clustered_mean(values, clusters)
    return {
        "value": found.mean,
        "n": found.n,
        "n_clusters": found.n_clusters,
        "ci_low": found.low,
        "ci_high": found.high,
    }


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: [row[name] for row in rows] for name in rows[0]}
