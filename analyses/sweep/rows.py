"""From the numbers of single prompts to rows: means, differences from references, 95 % intervals over clusters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sparselens.analyses.interval import DRAWS, bounds, resamples
from sparselens.analyses.sweep.metric import COMPARED, METRICS, TASK
from sparselens.analyses.sweep.plan import ORACLE, ORACLE_MASS, RANDOM, cluster
from sparselens.analyses.sweep.run import Numbers, Swept, seeds_of

Rows = list[dict[str, Any]]


def point_rows(swept: Swept, place: int, seeds: int) -> tuple[Rows, Rows]:
    """Return the rows of `evals` and of `prompt_scores` of one point, without their run."""
    numbers = swept.numbers[place]
    clusters = [cluster(prompt) for prompt in swept.prompts]
    evals = [_row(metric, column(numbers, metric)[None], clusters) for metric in METRICS]
    for metric in COMPARED:
        mine = column(numbers, metric)
        for role in (ORACLE, ORACLE_MASS, RANDOM):
            names = seeds_of(metric, seeds) if role == RANDOM else [f"{metric} {role}"]
            theirs = np.stack([column(numbers, name) for name in names])
            evals.append(_row(f"{metric}_{role}", theirs, clusters))
            evals.append(_row(f"{metric}_over_{role}", mine - theirs, clusters))
    scores = [
        {"prompt_id": prompt.id, "metric": name.replace(" ", "_"), "value": value}
        for prompt, found in zip(swept.prompts, numbers, strict=True)
        for name, value in found.items()
    ]
    return [row for row in evals if row["n"]], [row for row in scores if not np.isnan(row["value"])]


def base_rows(swept: Swept) -> tuple[Rows, Rows]:
    """Return the rows about the base itself."""
    clusters = [cluster(prompt) for prompt in swept.prompts]
    names = list(dict.fromkeys(name for found in swept.base for name in found))
    evals = [_row(name, column(swept.base, name)[None], clusters) for name in names]
    scores = [
        {"prompt_id": prompt.id, "metric": name, "value": value}
        for prompt, found in zip(swept.prompts, swept.base, strict=True)
        for name, value in found.items()
    ]
    return evals, scores


def column(numbers: Sequence[Numbers], name: str) -> Any:
    """Return a number of every prompt, NaN where it has none: `[prompts]`."""
    return np.asarray([found.get(name, np.nan) for found in numbers], float)


def _row(metric: str, values: Any, clusters: Sequence[str]) -> dict[str, Any]:
    """Return the mean of `values [seeds, prompts]` with its interval; prompts without a number are left out."""
    there = ~np.isnan(values).any(0)
    some = [name for name, known in zip(clusters, there, strict=True) if known]
    value, low, high = seeded_mean(values[:, there], some)
    return {
        "metric": metric,
        "value": value,
        "n": len(some),
        "n_clusters": len(set(some)),
        "ci_low": low,
        "ci_high": high,
        "task": TASK,
    }


def seeded_mean(values: Any, clusters: Sequence[str]) -> tuple[float, float, float]:
    """Return the mean of `values [seeds, prompts]` and its 95 % interval: whole clusters and seeds are drawn.

    One draw takes the same prompts for all seeds: an equal mask of equal positions is what seeds share.
    """
    seeds, n = values.shape
    if not n:
        return float("nan"), float("nan"), float("nan")
    times = resamples(clusters)
    means = (times @ values.T) / times.sum(1, keepdims=True)
    picks = np.random.default_rng(0).integers(0, seeds, (DRAWS, seeds))
    return float(values.mean()), *bounds(np.take_along_axis(means, picks, 1).mean(1))
