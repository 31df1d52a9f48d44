"""Scores of heads from their codes (O'Neill and Bui, arXiv 2405.12522), and how well scores rank the heads that matter.

As the authors' code has it: the node score counts the codes that a head has on some positive prompt and on no negative
one; the edge score does so for pairs of codes of two heads on the same prompt, and a head counts how often it stands in
the first half of the n² pairs' list. The softmax that they take over heads changes no order. `separation` is ours: the
total variation distance of the two distributions of codes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import rankdata

from sparselens.analyses.interval import DRAWS, Interval


def node_scores(positive: Any, negative: Any, width: int) -> dict[str, Any]:
    """Return `unique`, `share` and `separation` `[heads]` of codes `[prompts, heads]`, which are at most `width`."""
    there, here = (
        np.stack([(codes == code).mean(0) for code in range(width + 1)]) for codes in (positive, negative)
    )
    unique = ((there > 0) & (here == 0)).sum(0)
    either = ((there > 0) | (here > 0)).sum(0)
    return {
        "unique": unique.astype(float),
        "share": unique / either,
        "separation": np.abs(there - here).sum(0) / 2,
    }


def pair_counts(positive: Any, negative: Any, width: int) -> Any:
    """Return `[heads, heads]`: pairs of codes on one positive prompt that are on no negative one; the diagonal is 0."""
    heads = positive.shape[1]
    found = np.zeros((heads, heads), int)
    for head in range(heads):
        mine, others = (codes[:, head, None] * (width + 1) + codes for codes in (positive, negative))
        first = (mine[:, None] == mine[None]).argmax(1) == np.arange(len(mine))[:, None]
        seen = np.zeros(mine.shape, bool)
        for row in others:
            seen |= mine == row
        found[head] = (first & ~seen).sum(0)
    np.fill_diagonal(found, 0)
    return found


def edge_scores(positive: Any, negative: Any, width: int) -> Any:
    """Return how often each head stands in the first n²/2 places of the pairs, largest count first: `[heads]`."""
    counts = pair_counts(positive, negative, width)
    heads = len(counts)
    order = np.argsort(-counts, axis=None, kind="stable")
    listed = np.stack(np.unravel_index(order, counts.shape), 1).ravel()[: heads**2 // 2]
    return np.bincount(listed, minlength=heads).astype(float)


def wins(scores: Any, matter: Any) -> Any:
    """Return `[mattering, others]`: 1 where the score of a head that matters is larger, ½ where both are equal.

    `scores [trials, heads]`, mean over trials; the mean of what is returned is the area under the ROC curve.
    """
    inside, outside = scores[:, matter], scores[:, ~matter]
    above = inside[:, :, None] > outside[:, None]
    return (above + (inside[:, :, None] == outside[:, None]) / 2).mean(0)


def area(won: Any, *, seed: int = 0) -> Interval:
    """Return the area under the ROC curve with an interval over heads: those that matter and the others are drawn.

    Also of a difference of two `wins`, paired by head. NaN where no head matters, NaN bounds below two heads on a side.
    """
    mattering, others = won.shape
    mean = float(won.mean()) if won.size else float("nan")
    if min(mattering, others) < 2:
        return Interval(mean, float("nan"), float("nan"), mattering + others, mattering + others)
    random = np.random.default_rng(seed)
    inside = random.multinomial(mattering, np.full(mattering, 1 / mattering), DRAWS)
    outside = random.multinomial(others, np.full(others, 1 / others), DRAWS)
    draws = ((inside @ won) * outside).sum(1) / (mattering * others)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(mean, float(low), float(high), mattering + others, mattering + others)


def rank_correlation(scores: Any, size: Any) -> float:
    """Return Spearman's ρ of scores `[trials, heads]` with the size of effects `[heads]`, mean over trials.

    A trial that scores all heads alike has 0; NaN where all effects are alike.
    """
    target = rankdata(size)
    if target.std() == 0:
        return float("nan")
    found = []
    for each in scores:
        ranks = rankdata(each)
        found.append(0.0 if ranks.std() == 0 else float(np.corrcoef(ranks, target)[0, 1]))
    return float(np.mean(found))


def softmax(counts: Any) -> Any:
    """Return the softmax over heads, as the authors print it."""
    grown = np.exp(counts - counts.max())
    return grown / grown.sum()
