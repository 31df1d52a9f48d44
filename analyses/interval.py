"""Means with 95 % bootstrap intervals, clustered (template, needle family) and paired by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

DRAWS = 2000


@dataclass(frozen=True)
class Interval:
    """A mean over `n` prompts in `n_clusters` clusters, and the interval of it; NaN bounds below two clusters."""

    mean: float
    low: float
    high: float
    n: int
    n_clusters: int

    def __str__(self) -> str:
        if np.isnan(self.low):
            return f"{self.mean:.3g}"
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


def clustered_mean(
    values: Sequence[float] | Any, clusters: Sequence[str] | Any, *, seed: int = 0
) -> Interval:
    """Return the mean of `values [n]` with a percentile bootstrap over whole clusters `[n]` (2,000 draws).

    Values are weighted equally, so a cluster counts by its size. Missing values are left out. For a paired difference
    pass the differences.
    """
    numbers = np.asarray(values, np.float64)
    names = np.asarray(clusters, object)
    there = ~np.isnan(numbers)
    numbers, names = numbers[there], names[there]
    if not len(numbers):
        return Interval(float("nan"), float("nan"), float("nan"), 0, 0)
    _, codes = np.unique(names.astype(str), return_inverse=True)
    count = np.bincount(codes)
    total = np.bincount(codes, weights=numbers)
    n_clusters = len(count)
    mean = float(numbers.mean())
    if n_clusters < 2:
        return Interval(mean, float("nan"), float("nan"), len(numbers), n_clusters)
    drawn = np.random.default_rng(seed).integers(0, n_clusters, (DRAWS, n_clusters))
    means = total[drawn].sum(1) / count[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(mean, float(low), float(high), len(numbers), n_clusters)


def resamples(clusters: Sequence[str] | Any, *, seed: int = 0) -> Any:
    """Return how often each unit counts in each draw over whole clusters `[n]`: `[DRAWS, n]`, for any statistic.

    NaN where there are fewer than two clusters: then nothing can be said about the spread.
    """
    _, codes = np.unique(np.asarray(clusters, object).astype(str), return_inverse=True)
    n_clusters = int(codes.max()) + 1 if len(codes) else 0
    if n_clusters < 2:
        return np.full((DRAWS, len(codes)), np.nan)
    drawn = np.random.default_rng(seed).integers(0, n_clusters, (DRAWS, n_clusters))
    times = np.zeros((DRAWS, n_clusters))
    np.add.at(times, (np.arange(DRAWS)[:, None], drawn), 1.0)
    return times[:, codes]


def bounds(draws: Any) -> tuple[float, float]:
    """Return the 2.5 % and 97.5 % quantiles of a statistic's draws; NaN where there are none."""
    if np.isnan(draws).any():
        return float("nan"), float("nan")
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def clustered_means(
    values: Any, clusters: Sequence[str] | Any, *, strata: Sequence[int] | None = None, seed: int = 0
) -> tuple[Any, Any, Any]:
    """Return mean, low and high `[columns]` of each column of `values [n, columns]`: `clustered_mean` of each.

    All columns share their draws. `strata [n]`: parts of the design, such as gaps; clusters are drawn within them, so
    that a difference between parts is not taken for chance. NaN bounds where a part has one cluster. Nothing may be
    missing.
    """
    numbers = np.asarray(values, np.float64)
    _, first, codes = np.unique(
        np.asarray(clusters, object).astype(str), return_index=True, return_inverse=True
    )
    count = np.bincount(codes)
    n_clusters = len(count)
    part = np.zeros(n_clusters, int) if strata is None else np.asarray(strata)[first]
    mean = numbers.mean(0)
    if np.unique(part, return_counts=True)[1].min() < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    total = np.zeros((n_clusters, numbers.shape[1]))
    np.add.at(total, codes, numbers)
    random = np.random.default_rng(seed)
    times = np.zeros((DRAWS, n_clusters))
    for each in np.unique(part):
        members = np.flatnonzero(part == each)
        drawn = members[random.integers(0, len(members), (DRAWS, len(members)))]
        np.add.at(times, (np.arange(DRAWS)[:, None], drawn), 1.0)
    low, high = np.quantile((times @ total) / (times @ count)[:, None], [0.025, 0.975], axis=0)
    return mean, low, high
