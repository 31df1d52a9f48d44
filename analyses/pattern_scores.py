"""What a head's attention looks like, in numbers: pure formulas on what a kernel reduces of a pattern.

No map is needed: previous-token, duplicate and induction scores read the weights at one key a row (`targets`,
the statistic `gathered`), Sink_k the column sums (`received`), entropy its row values.
"""

from __future__ import annotations

import torch
from torch import Tensor

TARGETS = ("previous_token", "duplicate_token", "induction")
"""What a row is asked about: the key before it, the last earlier same token, the key after that one."""


def last_same(ids: Tensor) -> Tensor:
    """Return for each position of `ids [tokens]` the last earlier position of the same token, -1 where none."""
    seen: dict[int, int] = {}
    found = []
    for position, token in enumerate(ids.tolist()):
        found.append(seen.get(token, -1))
        seen[token] = position
    return torch.tensor(found, dtype=torch.long)


def targets(ids: Tensor) -> Tensor:
    """Return the key that each row is asked about: int64 `[tokens, 3]` in the order of `TARGETS`, -1 = none.

    Induction: row q, whose token stood at p < q before, is asked about p + 1 (Olsson et al. 2022). On a sequence
    that is repeated after `period` tokens this is q − period + 1.
    """
    before = last_same(ids)
    after = torch.where(before >= 0, before + 1, before)
    return torch.stack([torch.arange(len(ids)) - 1, before, after], dim=-1)


def mean_on_targets(at_targets: Tensor, keys: Tensor) -> Tensor:
    """Return `[heads, m]`: the mean of `at_targets [heads, tokens, m]` over the rows with a key `[tokens, m]` ≥ 0.

    A dropped key counts 0: a policy that cannot reach its target has not attended to it. NaN without such rows.
    """
    there = (keys >= 0).to(at_targets.dtype)
    return (at_targets * there).sum(-2) / there.sum(0)


def sink_alpha(received: Tensor, seen_by: Tensor) -> Tensor:
    """Return Gu et al.'s alpha_k `[heads, keys]`: column sums ÷ the number of queries that may see the key."""
    return received / seen_by.clamp(min=1)


def is_sink(alpha: Tensor, epsilon: float, *, edge: int = 8) -> tuple[Tensor, Tensor]:
    """Return whether the first key, and whether any other key, holds more than `epsilon`: two bools `[heads]`.

    Gu et al., Sink_k^ε of one sample (arXiv 2410.10781): the share over samples is taken *after* this threshold. The
    last `edge` keys are left out: few queries see them, so that attending to oneself looks like a sink there.
    """
    return alpha[:, 0] > epsilon, (alpha[:, 1 : max(alpha.shape[1] - edge, 1)] > epsilon).any(-1)


def entropy_share(entropy: Tensor, kept: Tensor) -> Tensor:
    """Return entropy ÷ ln(kept keys), elementwise; NaN in rows that keep one key or none."""
    keys = kept.to(entropy.dtype)
    return torch.where(keys > 1, entropy / keys.log(), torch.nan)
