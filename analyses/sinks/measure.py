"""Numbers about sinks by prompt, and the rows of `head_scores` and `evals` that they become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparselens.analyses.interval import clustered_means

TASK = "sinks"
"""The task that rows of `evals` bear."""

DEFINITIONS = {
    "sink_rate": "share of heads and prompts in which the first key holds more than epsilon of the attention of the "
    "first `window` queries (Sink_1^ε)",
    "sink_alpha": "mean attention to the first key, over the first `window` queries, heads and prompts",
    "value_drain": "‖W_O^h v‖ at the first token ÷ its mean over the other tokens, mean over prompts",
    "residual_peak": "norm of the residual stream before the layer at the first token ÷ its mean over the others",
    "residual_peak_other": "largest such norm at a later token ÷ the median over later tokens",
    "other_sinks": "later tokens of a prompt that receive more than `received` of the attention of the queries that "
    "can see them, mean over heads; the last eighth of the prompt and at least 8 tokens left out",
    "other_sinks_received": "what those tokens receive",
    "other_sinks_residual": "residual norm of those tokens ÷ the median over the later tokens that are no sinks",
    "other_sinks_write": "‖W_O^h v‖, mean over heads, of those tokens ÷ the median over the later tokens that are none",
    "sink_kept": "share of the rows in which the policy keeps the first token",
    "sink_mass_base": "mass on the first token under the base",
    "sink_mass_run": "mass on the first token under the run",
    "sink_change": "run − base of the mass on the first token",
    "sink_to_oldest": "run − base of the mass on the oldest kept key, where that is not the first token",
    "sink_to_newest": "run − base of the mass on the 8 newest keys, as far as `edges` has them",
    "sink_to_later": "run − base of the mass on the base's other sinks in that layer, as far as `edges` has them",
    "sink_to_others": "run − base of the mass on all other keys that `edges` has",
    "sink_to_unstored": "run − base of the mass on keys that `edges` does not have; the five add up to −sink_change",
    "oldest_mass_base": "mass under the base on the key that is the oldest kept one under the run, over the rows that "
    "drop the first token; 0 where `edges` does not have it",
    "oldest_mass_run": "the same under the run",
    "unstored_mass": "mass under the run on keys that `edges` does not have",
    "entropy_change": "run − base of the entropy of the executed pattern, nats",
    "new_sinks": "tokens of a prompt that are other sinks under the run and not under the base",
    "lost_sinks": "tokens of a prompt that are other sinks under the base and not under the run",
    "first_residual_change": "residual norm of the first token under the run ÷ under the base − 1",
    "other_residual_change": "the same, mean over the base's other sinks in that layer",
    "value_drain_change": "run − base of value_drain",
    "affected_rows": "share of the query rows ≥ 8 in which some head dropped a key",
    "nll_base": "−ln probability of the next token under the base, nats",
    "nll_run": "the same under the run",
    "nll_change": "run − base of it",
    "nll_change_kept": "nll_change over the rows in which all heads that sink keep the first token: heads that give "
    "it more than epsilon under the base, mean over the affected rows",
    "nll_change_dropped": "nll_change over the rows in which one of those heads drops it",
}
"""Every metric in one sentence. The rows are those that the column `rows` says: affected ones from position 8 on."""


@dataclass(frozen=True, eq=False)
class Prompts:
    """The prompts that numbers are by: equal-length lists, in the order of their ids."""

    ids: list[str]
    clusters: list[str]
    sets: list[str]
    lengths: list[int]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class Measure:
    """One metric: `values [prompts]`, `[prompts, layers]` or `[prompts, layers, heads]`, NaN where there is none.

    `n` observations lie behind each value (one number, or an array of that shape).
    """

    metric: str
    values: Any
    n: Any = 1
    rows: str = "all"

    def coarser(self) -> Measure:
        """Return the mean over the last axis: of heads a layer's, of layers the run's."""
        there = ~np.isnan(self.values)
        count = there.sum(-1)
        total = np.where(there, self.values, 0.0).sum(-1)
        values = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        return Measure(self.metric, values, np.where(there, self.n, 0).sum(-1), self.rows)

    def levels(self) -> list[Measure]:
        """Return it with all its coarser ones: by head, by layer, of the run."""
        return [self, *(self.coarser().levels() if self.values.ndim > 1 else [])]


def grid(table: Any, column: str, prompts: Prompts, shape: tuple[int, ...]) -> Any:
    """Return a column of an arrow table with `prompt_id`, `layer` and perhaps `head` as `[prompts, *shape]`."""
    place = {prompt: index for index, prompt in enumerate(prompts.ids)}
    at = [np.asarray([place[prompt] for prompt in table["prompt_id"].to_pylist()], int)]
    at += [table[name].to_numpy() for name in ("layer", "head")[: len(shape)]]
    filled = np.full((len(prompts), *shape), np.nan)
    filled[tuple(at)] = table[column].to_numpy()
    return filled


def score_tables(
    measures: Sequence[Measure], prompts: Prompts, params: str
) -> list[tuple[str, dict[str, Any]]]:
    """Return the blocks of `head_scores` (heads, and layers with head NULL) and of `evals` (the run's)."""
    flat = [each.values.reshape(len(prompts), -1) for each in measures]
    owner: Any = np.repeat(np.arange(len(measures)), [each.shape[1] for each in flat])
    place = np.concatenate([_places(each.values.shape[1:]) for each in measures])
    n = [
        np.broadcast_to(each.n, each.values.shape).reshape(len(prompts), -1).astype(int) for each in measures
    ]
    numbers = _intervals(np.concatenate(flat, axis=1), np.concatenate(n, axis=1), prompts)
    metric = np.asarray([each.metric for each in measures], object)[owner]
    about = {
        "layer": place[:, 0],
        "head": place[:, 1],
        "rows": np.asarray([each.rows for each in measures], object)[owner],
        "definition": np.asarray([DEFINITIONS[name] for name in metric], object),
    }
    there, of_run = ~np.isnan(numbers["value"]), np.isnan(place[:, 0])
    scores = {"metric": metric, **numbers}
    evals = {name: scores[name][there & of_run] for name in scores if name != "prompt_set"}
    scores = {name: values[there & ~of_run] for name, values in (scores | about).items()}
    return [("head_scores", scores | {"params": params}), ("evals", evals | {"task": TASK})]


def _places(shape: tuple[int, ...]) -> Any:
    """Return layer and head of each cell of `[]`, `[layers]` or `[layers, heads]`: `[cells, 2]`, NaN for none."""
    cells = np.full((int(np.prod(shape)), 2), np.nan)
    for axis, index in enumerate(np.indices(shape)):
        cells[:, axis] = index.reshape(-1)
    return cells


def _intervals(values: Any, n: Any, prompts: Prompts) -> dict[str, Any]:
    """Return mean, interval, `n`, `n_clusters` and prompt sets of each column of `values [prompts, columns]`.

    One bootstrap for all columns that the same prompts have: a matrix product, no loop over rows.
    """
    there = ~np.isnan(values)
    clusters, size = np.asarray(prompts.clusters, object), values.shape[1]
    found = {name: np.full(size, np.nan) for name in ("value", "ci_low", "ci_high")}
    found |= {"n": np.where(there, n, 0).sum(0), "n_clusters": np.zeros(size, int)}
    found |= {"prompt_set": np.full(size, "", object)}
    patterns, which = np.unique(there, axis=1, return_inverse=True)
    for number, pattern in enumerate(patterns.T):
        columns = np.flatnonzero(which.reshape(-1) == number)
        if not pattern.any():
            continue
        numbers = clustered_means(values[np.ix_(pattern, columns)], clusters[pattern])
        for name, each in zip(("value", "ci_low", "ci_high"), numbers, strict=True):
            found[name][columns] = each
        found["n_clusters"][columns] = len(set(clusters[pattern]))
        sets = dict.fromkeys(name for name, has in zip(prompts.sets, pattern, strict=True) if has)
        found["prompt_set"][columns] = ", ".join(sets)
    return found
