"""How well attention ranks the tokens as attribution does: rank correlations over the tokens of one prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import kendalltau, rankdata

QUANTITIES = {
    "attention": "the executed attention of the row that predicts the answer's first token",
    "value_weighted": "that attention times ‖W_O^h v‖ of the key's value",
    "received": "the attention that the key receives, mean over the rows that may see it",
}
METHODS = {
    "ablation": "the loss of the answer's log-probability when the token is replaced",
    "ig": "integrated gradients of the answer's log-probability, summed over the embedding",
}

ROUNDING = 1e-6
"""Attribution below this share of the prompt's largest is the rounding of float32 (measured: 8e-7 nats), and is 0."""


@dataclass(frozen=True)
class Metric:
    """One rank correlation: between which attribution and which attention, over which tokens."""

    stat: str
    quantity: str
    method: str
    signed: bool = False
    with_first: bool = False
    given_position: bool = False

    @property
    def name(self) -> str:
        """The name in the tables; what is not said is ablation, its absolute value, the first token left out."""
        parts = ["attribution", self.stat, self.quantity]
        parts += ["ig"] * (self.method == "ig") + ["signed"] * self.signed
        parts += ["with_first"] * self.with_first + ["given_position"] * self.given_position
        return "_".join(parts)

    @property
    def definition(self) -> str:
        """The metric in one sentence."""
        kind = {"spearman": "Spearman's ρ", "kendall": "Kendall's τ-b"}[self.stat]
        kind = f"partial {kind} given the token's position" if self.given_position else kind
        attributed = METHODS[self.method] if self.signed else f"the absolute value of {METHODS[self.method]}"
        first = "and the first token" if self.with_first else "the first token left out"
        return (
            f"mean over prompts of {kind}, over the replaced tokens before the answer's row, {first}, between"
            f" {attributed}, and {QUANTITIES[self.quantity]}"
        )


def metrics(methods: tuple[str, ...]) -> list[Metric]:
    """Return every correlation that is stored for heads, layers and the model.

    With the first token only for ablation: the baseline of integrated gradients keeps it, so that it gets nothing.
    """
    plain = [
        Metric(stat, quantity, method, with_first=with_first)
        for method in methods
        for stat in ("spearman", "kendall")
        for quantity in QUANTITIES
        for with_first in ((False, True) if method == "ablation" else (False,))
    ]
    further = ({"signed": True}, {"given_position": True})
    return plain + [
        Metric("spearman", quantity, method, **how)
        for method in methods
        for how in further
        for quantity in QUANTITIES
    ]


def units(values: Any) -> Any:
    """Return `[layers · heads + layers + 1, keys]` of `values [layers, heads, keys]`.

    Every head, then the mean over the heads of each layer, then the mean over all heads.
    """
    layers, heads, keys = values.shape
    return np.concatenate([values.reshape(layers * heads, keys), values.mean(1), values.mean((0, 1))[None]])


def standard_ranks(values: Any) -> Any:
    """Return the ranks of `values [..., keys]` with mean 0 and length 1; NaN where all are equal."""
    ranks = rankdata(values, axis=-1)
    ranks = ranks - ranks.mean(-1, keepdims=True)
    length = np.sqrt((ranks**2).sum(-1, keepdims=True))
    return ranks / np.where(length == 0, np.nan, length)


def spearman(one: Any, many: Any) -> Any:
    """Return Spearman's ρ `[n]` of `one [keys]` with each row of `many [n, keys]`; ties share their mean rank."""
    return standard_ranks(many) @ standard_ranks(one)


def kendall(one: Any, many: Any) -> Any:
    """Return Kendall's τ-b `[n]` of `one [keys]` with each row of `many [n, keys]`."""
    return np.asarray([kendalltau(one, row, method="asymptotic").statistic for row in many])


def spearman_given(one: Any, many: Any, other: Any) -> Any:
    """Return the partial ρ `[n]`: of what is left of both sides' ranks when those of `other [keys]` are taken out.

    Attention and attribution both favour near tokens; this is what they share beyond that.
    """
    known = standard_ranks(other)

    def left(ranks: Any) -> Any:
        rest = ranks - (ranks @ known)[..., None] * known
        length = np.sqrt((rest**2).sum(-1, keepdims=True))
        return rest / np.where(length < ROUNDING, np.nan, length)

    return left(standard_ranks(many)) @ left(standard_ranks(one))


_STATS = {"spearman": spearman, "kendall": kendall}


def correlations(
    attributed: Mapping[str, Any], attention: Mapping[str, Any], replaced: Any
) -> dict[str, Any]:
    """Return each of `metrics` by name: `[units]`, NaN where one side is the same at all compared tokens.

    `attributed [tokens]` by method, `attention [units, tokens]` by quantity; compared are the `replaced [tokens]`.
    """
    found = {}
    for metric in metrics(tuple(attributed)):
        at = np.flatnonzero(replaced)
        at = np.concatenate([[0], at]) if metric.with_first else at
        values = settled(attributed[metric.method][at])
        many = attention[metric.quantity][:, at]
        values = values if metric.signed else np.abs(values)
        found[metric.name] = (
            spearman_given(values, many, at) if metric.given_position else _STATS[metric.stat](values, many)
        )
    return found


def settled(attributed: Any) -> Any:
    """Return `attributed [keys]` with what is only rounding as 0, so that tokens without effect are tied."""
    size = np.abs(attributed)
    return np.where(size <= ROUNDING * size.max(initial=0.0), 0.0, attributed)


def shuffled(attributed: Any, attention: Any, *, draws: int, seed: str) -> Any:
    """Return Spearman's ρ `[draws, units]` with the attribution `[keys]` in random order: what chance gives."""
    random = np.random.default_rng(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big"))
    orders = random.permuted(np.tile(standard_ranks(np.abs(settled(attributed))), (draws, 1)), axis=1)
    return orders @ standard_ranks(attention).T


def on_dropped(attributed: Any, kept: Any) -> float:
    """Return the share of `|attributed| [keys]` on keys that the row dropped, mean over `kept [heads, keys]`."""
    size = np.abs(attributed)
    return float((size * ~kept).sum(-1).mean() / size.sum()) if size.sum() else float("nan")


def held_out_best(values: Any, clusters: Sequence[str]) -> Any:
    """Return `[prompts]` of `values [prompts, heads]`: of each prompt the head that is best on the other clusters.

    NaN with a single cluster, and where no head has a value on the others.
    """
    names = np.asarray(clusters, object)
    found = np.full(len(names), np.nan)
    for name in dict.fromkeys(clusters):
        inside = names == name
        others = values[~inside]
        there = ~np.isnan(others)
        if not there.any():
            continue
        mean = np.where(there, others, 0).sum(0) / np.maximum(there.sum(0), 1)
        found[inside] = values[inside, np.where(there.any(0), mean, -np.inf).argmax()]
    return found
