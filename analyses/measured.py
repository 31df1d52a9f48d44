"""A number of every head, with its interval and what it is over: the rows of `head_scores`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparselens.analyses.interval import clustered_means


@dataclass(frozen=True)
class Measured:
    """A metric of every head, or (`of_layers`) of every layer: mean, interval `[layers · heads]` or `[layers]`.

    `n` rows (or sequences, windows: see the definition) of `n_clusters` sequences or families stand behind it.
    """

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
    of_layers: bool = False

    def columns(self, layers: int) -> dict[str, Any]:
        """Return the rows of `head_scores`."""
        number = np.arange(len(self.mean))
        heads = len(self.mean) // layers
        return {
            "layer": (number // heads).astype(np.uint8),
            "head": [None] * len(number) if self.of_layers else (number % heads).astype(np.uint16),
            "metric": self.metric,
            "value": self.mean,
            "n": self.n,
            "n_clusters": self.n_clusters,
            "ci_low": self.low,
            "ci_high": self.high,
            "prompt_set": self.prompt_set,
            "rows": self.rows,
            "params": json.dumps(self.params, sort_keys=True),
            "definition": self.definition,
        }


def measured(
    metric: str,
    values: Any,
    clusters: Sequence[str],
    *,
    prompt_set: str,
    rows: str,
    definition: str,
    params: dict[str, Any],
    n: int | None = None,
    strata: Sequence[int] | None = None,
    of_layers: bool = False,
) -> Measured:
    """Return mean and interval of `values [units, numbers]`; units are drawn by `clusters`, within `strata` if given.

    `n` counts the observations, units unless said.
    """
    mean, low, high = clustered_means(values, clusters, strata=strata)
    return Measured(
        metric,
        mean,
        low,
        high,
        len(values) if n is None else n,
        len(set(clusters)),
        prompt_set,
        rows,
        definition,
        params,
        of_layers,
    )
