"""Budget rules: how many of the scored units are kept.

All work on the last axis, keep nothing where `valid` is False, and break ties towards the lower index. What is
always kept is added by the caller, before (scores of `inf` count in a `top_k`) or after (on top of it).

Papers mean three things by *top-p*. With units sorted by mass, descending, and c their cumulative sum, `RULES` are:

| rule | keeps | papers |
|---|---|---|
| `inclusive` | up to and including the unit with which c reaches the target | XAttention, PBS-Attn |
| `exclusive` | while c is at most the target; at least one unit | SpargeAttn, FlexPrefill's blocks |
| `count_plus_one` | count(c ≤ target) + 1 units | FlexPrefill's columns and diagonals |

They differ by the crossing unit; `inclusive` and `count_plus_one` differ where c meets the target exactly.
Where floating sums never reach the target, every valid unit is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

RULES = ("inclusive", "exclusive", "count_plus_one")


def ranks(scores: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the place of each unit in descending order, from 0; invalid units come last. int64, as `scores`."""
    if valid is not None:
        scores = scores.masked_fill(~valid, float("-inf"))
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    places = torch.arange(scores.shape[-1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)


def top_k(scores: Tensor, k: int | Tensor, valid: Tensor | None = None) -> Tensor:
    """Return which units are among the `k` best: bool as `scores`. `k` may be a tensor `[…, 1]`."""
    kept = ranks(scores, valid) < k
    return kept if valid is None else kept & valid


def top_p(
    mass: Tensor,
    share: float | Tensor,
    rule: str,
    valid: Tensor | None = None,
    total: Tensor | None = None,
) -> Tensor:
    """Return which units hold the largest `share` of `total` (the row's own sum unless said), under a `rule`.

    `mass` ≥ 0. Raises `ValueError` on a rule that is none of `RULES`.
    """
    return top_k(mass, counted(mass, share, rule, valid, total), valid)


def counted(
    mass: Tensor,
    share: float | Tensor,
    rule: str,
    valid: Tensor | None = None,
    total: Tensor | None = None,
) -> Tensor:
    """Return how many units `top_p` keeps: int64 `[…, 1]`; see there."""
    if rule not in RULES:
        raise ValueError(f"a top-p rule is one of {', '.join(RULES)}, not {rule!r}")
    if valid is not None:
        mass = mass.masked_fill(~valid, 0.0)
    there = torch.full_like(mass[..., :1], mass.shape[-1]) if valid is None else valid.sum(-1, keepdim=True)
    there = there.long().expand(*mass.shape[:-1], 1)
    ordered = mass.double().sort(dim=-1, descending=True).values
    cumulative = ordered.cumsum(-1)
    target = share * (cumulative[..., -1:] if total is None else total.double())
    if rule == "inclusive":
        count = (cumulative < target).sum(-1, keepdim=True) + 1
    else:
        count = (cumulative <= target).sum(-1, keepdim=True)
        count = count.clamp(min=1) if rule == "exclusive" else count + 1
    return torch.minimum(count, there)
