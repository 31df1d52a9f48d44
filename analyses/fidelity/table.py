"""How faithful a run is, from the tables of a paired capture: per head in each scope, and per token. No model runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparselens.analyses.fidelity.interval import Numbers, means
from sparselens.analyses.fidelity.pair import Pair
from sparselens.storage.reader import Connection
from sparselens.storage.schema import table as declared

TASK = "fidelity"
"""The task that rows of `evals` and `prompt_scores` bear."""
SCOPES = {
    "end_to_end": "as it ran",
    "local_mask": "the run's own selection on the base's queries, keys and values",
    "local_policy": "the policy asked again on the base's queries and keys",
}
METRICS = ("write_error", "kept_mass", "kept_mass_nosink", "top8_overlap", "js")
ROWS = ("span:answer", "affected", "all")

_TOKENS = {
    "kl": "KL(base ‖ run) of the next-token distributions, nats",
    "nll_change": "run − base of −ln probability of the next token, nats",
    "nll_change_abs": "its absolute value",
    "top1_same": "share of tokens for which both find the same one most probable",
}
_WHERE = {
    "": "all tokens but the first",
    "_affected": "tokens predicted from rows in which some head dropped a key",
    "_answer": "the answer's tokens",
}
TOKENS = {
    f"{name}{suffix}": f"{what}; mean over {where}, then over prompts"
    for name, what in _TOKENS.items()
    for suffix, where in _WHERE.items()
} | {"affected_tokens": "share of tokens predicted from rows in which some head dropped a key"}
"""Per-token metrics and what they are."""
_BUCKETS = ("kl", "nll_change", "top1_same")


Block = tuple[str, dict[str, Any]]
"""A table's name and columns for it."""


@dataclass(frozen=True, eq=False)
class Prompts:
    """The prompts of a pair: ids in order, the cluster of each, the call of its set."""

    ids: list[str]
    clusters: list[str]
    sets: list[str]

    @classmethod
    def of(cls, connection: Connection, pair: Pair) -> Prompts:
        """Read them."""
        table = pair.ask(connection, "prompts")
        return cls(*(table[name].to_pylist() for name in ("prompt_id", "cluster", "prompt_set")))

    def nothing(self) -> Any:
        """Return an array with a place for every prompt, nothing in it: NaN `[prompts]`."""
        return np.full(len(self.ids), np.nan)

    def place(self, ids: Sequence[str]) -> Any:
        """Return where prompts stand in the order: `[n]`."""
        order = {prompt: number for number, prompt in enumerate(self.ids)}
        return np.asarray([order[each] for each in ids], int)

    def clusters_of(self, ids: Sequence[str]) -> list[str]:
        """Return the cluster of each of these prompts."""
        return [self.clusters[number] for number in self.place(ids)]

    def sets_of(self, ids: Sequence[str]) -> str:
        """Return the sets that these prompts are of, as one text."""
        return ", ".join(dict.fromkeys(self.sets[number] for number in self.place(ids)))


def head_scores(connection: Connection, pair: Pair, prompts: Prompts) -> list[Block]:
    """Return blocks of `head_scores`, one for each metric, scope and rows there are."""
    table = pair.ask(connection, "heads")
    prompt = prompts.place(table["prompt_id"].to_pylist())
    layer, head = (table[name].to_numpy().astype(int) for name in ("layer", "head"))
    columns = {name: _floats(table[name]) for name in METRICS}
    scope, rows = (np.asarray(table[name].to_pylist(), object) for name in ("scope", "rows"))
    shape = len(prompts.ids), int(layer.max()) + 1, int(head.max()) + 1
    meanings = {column.name: column.meaning for column in declared("diffs").columns}
    blocks = []
    for one, said in SCOPES.items():
        for over in ROWS:
            chosen = (scope == one) & (rows == over)
            for metric, column in columns.items():
                values = np.full(shape, np.nan)
                values[prompt[chosen], layer[chosen], head[chosen]] = column[chosen]
                about = {
                    "metric": in_scope(metric, one),
                    "rows": over,
                    "definition": f"{meanings[metric]}; scope {one}: {said}; mean over prompts",
                    "params": json.dumps(pair.params | {"scope": one}, sort_keys=True),
                    "prompt_set": prompts.sets_of(prompts.ids),
                }
                blocks += head_block(values.reshape(shape[0], -1), shape[2], prompts.clusters, about)
    return blocks


def in_scope(metric: str, scope: str) -> str:
    """Return the name of a metric in a scope: plain as it ran, else with the scope."""
    return metric if scope == "end_to_end" else f"{metric}_{scope}"


def head_block(values: Any, heads: int, clusters: Sequence[str], about: Mapping[str, Any]) -> list[Block]:
    """Return rows of `head_scores` for the heads that `values [prompts, layers · heads]` know; none: no block."""
    return number_block(means(values, clusters), heads, about)


def number_block(numbers: Numbers, heads: int, about: Mapping[str, Any]) -> list[Block]:
    """Return rows of `head_scores` for the heads whose number is known; none: no block."""
    there = np.flatnonzero(~np.isnan(numbers.value))
    if not len(there):
        return []
    place: dict[str, Any] = {
        "layer": (there // heads).astype(np.uint8),
        "head": (there % heads).astype(np.uint16),
    }
    return [("head_scores", place | numbers.columns(there) | dict(about))]


def token_scores(connection: Connection, pair: Pair, prompts: Prompts, bucket: int) -> dict[str, Any]:
    """Return every per-token metric by prompt, `[prompts]`: over all tokens, and by position."""
    table = pair.ask(connection, "tokens")
    place = prompts.place(table["prompt_id"].to_pylist())
    found: dict[str, Any] = {}
    for name in TOKENS:
        found[name] = prompts.nothing()
        found[name][place] = _floats(table[name])
    table = pair.ask(connection, "buckets", bucket=bucket)
    place = prompts.place(table["prompt_id"].to_pylist())
    which = table["bucket"].to_numpy()
    for name in _BUCKETS:
        for number in np.unique(which):
            values = prompts.nothing()
            values[place[which == number]] = _floats(table[name])[which == number]
            found[at_positions(name, int(number), bucket)] = values
    return found


def at_positions(metric: str, number: int, bucket: int) -> str:
    """Return the name of a metric over the tokens of one bucket of positions."""
    return f"{metric}_at_{number * bucket}_{(number + 1) * bucket - 1}"


def score_blocks(scores: Mapping[str, Any], prompts: Prompts) -> list[Block]:
    """Return `evals` (means over prompts) and `prompt_scores` of metrics by prompt `[prompts]`."""
    values = np.stack(list(scores.values()), axis=1)
    numbers = means(values, prompts.clusters)
    known = np.flatnonzero(~np.isnan(numbers.value))
    metric = np.asarray(list(scores), object)
    prompt, column = np.nonzero(~np.isnan(values))
    each = {
        "prompt_id": np.asarray(prompts.ids, object)[prompt],
        "metric": metric[column],
        "value": values[prompt, column],
        "task": TASK,
    }
    every = {"metric": metric[known], "task": TASK} | numbers.columns(known)
    return [("evals", every), ("prompt_scores", each)]


def _floats(column: Any) -> Any:
    """Return a column of an arrow table as float64, NULL as NaN."""
    return column.to_numpy(zero_copy_only=False).astype(float)
