"""Means and ratios of many columns over prompts, with intervals over whole clusters; prompts may lack a column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparselens.analyses.interval import clustered_means, resamples

UNDEFINED = 0.05
"""Share of draws in which a ratio may have no denominator; above it there is no interval."""


@dataclass(frozen=True, eq=False)
class Numbers:
    """A number for each column, its 95 % interval, and the units and clusters behind it: all `[columns]`."""

    value: Any
    low: Any
    high: Any
    n: Any
    n_clusters: Any

    @classmethod
    def empty(cls, columns: int) -> Numbers:
        """Return NaN and 0 for each column."""
        nothing = [np.full(columns, np.nan) for _ in range(3)]
        return cls(*nothing, *(np.zeros(columns, int) for _ in range(2)))

    def columns(self, chosen: Any = slice(None)) -> dict[str, Any]:
        """Return the columns of a result table, of the `chosen` ones."""
        names = ("value", "ci_low", "ci_high", "n", "n_clusters")
        arrays = (self.value, self.low, self.high, self.n, self.n_clusters)
        return {name: array[chosen] for name, array in zip(names, arrays, strict=True)}


def means(values: Any, clusters: Sequence[str]) -> Numbers:
    """Return the mean of each column of `values [units, columns]` over the units that have it (not NaN).

    One bootstrap for all columns that the same units have, by whole clusters `[units]`.
    """
    values, names = np.asarray(values, float), np.asarray(clusters, object)
    there = ~np.isnan(values)
    found = Numbers.empty(values.shape[1])
    patterns, which = np.unique(there, axis=1, return_inverse=True)
    for number, pattern in enumerate(patterns.T):
        if not pattern.any():
            continue
        columns = np.flatnonzero(which.reshape(-1) == number)
        numbers = clustered_means(values[np.ix_(pattern, columns)], names[pattern])
        for target, each in zip((found.value, found.low, found.high), numbers, strict=True):
            target[columns] = each
        found.n[columns], found.n_clusters[columns] = pattern.sum(), len(set(names[pattern]))
    return found


def ratios(above: Any, below: Any, clusters: Sequence[str]) -> Numbers:
    """Return mean of `above` ÷ mean of `below`, both `[units, columns]`, for each column.

    Draws are over whole clusters, the same for both. Those in which the denominator is 0 are left out; where they are
    more than 5 % there is no interval.
    """
    above, below = np.asarray(above, float), np.asarray(below, float)
    found = Numbers.empty(above.shape[1])
    found.n[:], found.n_clusters[:] = len(above), len(set(clusters))
    if not len(above):
        return found
    times = resamples(clusters)
    upper, lower = times @ above, times @ below
    with np.errstate(divide="ignore", invalid="ignore"):
        found.value[:] = above.sum(0) / below.sum(0)
        draws = np.where(lower > 0, upper / lower, np.nan)
    known = np.isnan(draws).mean(0) <= UNDEFINED
    if known.any():
        found.low[known], found.high[known] = np.nanquantile(draws[:, known], [0.025, 0.975], axis=0)
    return found
