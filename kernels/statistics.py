"""The statistics of attention weights, by name; `reduce_rows` is their definition.

All are of the *executed* weights `p` of one `attend`, renormalised over kept and allowed keys:
`p = exp(score - lse)`. With sink logits the weights of a row sum to less than 1. An empty row is all zeros.

| name | formula, for the row of query `q` | shape |
|---|---|---|
| `entropy` | `-sum p ln p`, nats | `[batch, heads, q_len]` |
| `sink_mass` | `p` at position 0 | `[batch, heads, q_len]` |
| `previous_mass` | `p` at position `q - 1` | `[batch, heads, q_len]` |
| `local_mass` | `sum p` over `q - k < local` (64 keys) | `[batch, heads, q_len]` |
| `distance` | `sum p (q - k)`, tokens | `[batch, heads, q_len]` |
| `top` | the `top` largest: `top_index` int32 (key index, -1 padded), `top_weight`, descending | `[…, top]` |
| `received` | column sums over the queries | `[batch, heads, k_len]` |
| `pooled` | mean over the queries of a row pool of the mass on a key pool | `[batch, heads, size, size]` |
| `gathered` | `p` at the key indices of `want.gather` (0 where -1) | as `want.gather` |

All float32 but `top_index`. Pools hold `pool` positions, the same number for queries and keys.

**Kept mass** needs no weights: for the same queries and keys, the dense mass on the keys a selection keeps is
`exp(lse_selection - lse_everything)` (`kept_mass`), and the Jensen-Shannon divergence between the dense
row and
its renormalised restriction follows from it in closed form (`restriction_js`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall

ROW_NAMES = frozenset({"entropy", "sink_mass", "previous_mass", "local_mass", "distance"})
NAMES = ROW_NAMES | {"top", "received", "pooled", "gathered"}


@dataclass(frozen=True, eq=False)
class Want:
    """What an `attend` should report beside its output: names of `NAMES` and their sizes.

    `gather`: int `[batch, heads, q_len, m]`, key indices, -1 = none; needed by `gathered`.
    Raises `ValueError` on an unknown name, or `gathered` without `gather`.
    """

    names: frozenset[str] = field(default_factory=frozenset)
    top: int = 8
    local: int = 64
    cells: int = 64
    gather: Tensor | None = None

    def __post_init__(self) -> None:
        unknown = set(self.names) - NAMES
        if unknown:
            raise ValueError(f"no statistic named {sorted(unknown)}; there are {sorted(NAMES)}")
        if ("gathered" in self.names) != (self.gather is not None):
            raise ValueError("the statistic 'gathered' and the field 'gather' go together")


NOTHING = Want()


@dataclass(frozen=True)
class Pools:
    """How positions are pooled for `pooled`: `size` pools of `pool` consecutive positions."""

    pool: int
    size: int

    @staticmethod
    def of(call: AttentionCall, cells: int) -> Pools:
        """Cut the call's positions into at most `cells` pools."""
        length = int(max(call.query_positions.max(), call.key_positions.max())) + 1
        pool = max(1, math.ceil(length / cells))
        return Pools(pool, math.ceil(length / pool))


def empty_statistics(call: AttentionCall, want: Want, pools: Pools | None = None) -> dict[str, Tensor]:
    """Return zeros (and -1 for `top_index`) in the shapes of the wanted statistics."""
    rows = (call.batch, call.heads, call.q_len)
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(sorted(want.names & ROW_NAMES), rows)
    if "top" in want.names:
        shapes |= {"top_weight": (*rows, want.top)}
    if "received" in want.names:
        shapes["received"] = (call.batch, call.heads, call.k_len)
    if "pooled" in want.names:
        pools = pools or Pools.of(call, want.cells)
        shapes["pooled"] = (call.batch, call.heads, pools.size, pools.size)
    if want.gather is not None:
        shapes["gathered"] = tuple(want.gather.shape)
    device = call.device
    statistics = {name: torch.zeros(shape, device=device) for name, shape in shapes.items()}
    if "top" in want.names:
        statistics["top_index"] = torch.full((*rows, want.top), -1, dtype=torch.int32, device=device)
    return statistics


def reduce_rows(
    statistics: dict[str, Tensor], weights: Tensor, call: AttentionCall, start: int, want: Want, pools: Pools
) -> None:
    """Add the weights of queries `start …` to `statistics`, which `empty_statistics` made.

    `weights` `[batch, heads, rows, k_len]`: executed weights, zero where not kept or not allowed.
    """
    stop = start + weights.shape[2]
    query = call.query_positions[:, None, start:stop, None]
    key = call.key_positions[:, None, None, :]
    gap = query - key
    rows: dict[str, Tensor] = {}
    if "entropy" in want.names:
        rows["entropy"] = -torch.xlogy(weights, weights).sum(-1)
    if "sink_mass" in want.names:
        rows["sink_mass"] = (weights * (key == 0)).sum(-1)
    if "previous_mass" in want.names:
        rows["previous_mass"] = (weights * (gap == 1)).sum(-1)
    if "local_mass" in want.names:
        rows["local_mass"] = (weights * (gap < want.local)).sum(-1)
    if "distance" in want.names:
        rows["distance"] = (weights * gap).sum(-1)
    if "top" in want.names:
        n = min(want.top, call.k_len)
        weight, index = weights.topk(n)
        rows["top_weight"] = pad_to(weight, want.top, 0.0)
        rows["top_index"] = pad_to(index.int().masked_fill(weight == 0, -1), want.top, -1)
    if want.gather is not None:
        wanted = want.gather[:, :, start:stop].long()
        rows["gathered"] = weights.gather(-1, wanted.clamp(min=0)).masked_fill(wanted < 0, 0.0)
    for name, value in rows.items():
        statistics[name][:, :, start:stop] = value
    if "received" in want.names:
        statistics["received"] += weights.sum(2)
    if "pooled" in want.names:
        from_query, to_key = pool_matrices(call, pools, start, stop)
        by_query = torch.matmul(from_query[:, None], weights.to(from_query.dtype))
        statistics["pooled"] += torch.matmul(by_query, to_key[:, None])


def pool_matrices(call: AttentionCall, pools: Pools, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Return the averaging `[b, size, rows]` over queries and the summing `[b, k_len, size]` over keys."""
    query, key = call.query_positions, call.key_positions
    names = torch.arange(pools.size, device=call.device)
    belongs = (query[:, None, :] // pools.pool == names[None, :, None]).to(call.accumulate)
    mean = belongs / belongs.sum(-1, keepdim=True).clamp(min=1)
    return mean[:, :, start:stop], (key[:, :, None] // pools.pool == names).to(call.accumulate)


def pad_to(values: Tensor, width: int, value: float) -> Tensor:
    """Return `values` with its last axis filled up to `width` with `value`."""
    return torch.nn.functional.pad(values, (0, width - values.shape[-1]), value=value)


def keys_lse(call: AttentionCall, lse: Tensor) -> Tensor:
    """Return `lse` `[batch, heads, q_len]` without the sink column: the log-sum-exp over kept keys alone."""
    if call.sinks is None:
        return lse
    sink = call.sinks.to(lse.dtype)[None, :, None]
    return torch.where(torch.isinf(lse), lse, lse + torch.log1p(-torch.exp(sink - lse).clamp(max=1)))


def kept_mass(call: AttentionCall, lse_selection: Tensor, lse_everything: Tensor) -> Tensor:
    """Return the dense mass on the keys a selection keeps, from two log-sum-exps of the *same* q and k.

    `sum over kept of exp(score - lse_everything) = exp(lse_selection - lse_everything)`; sink logits count in
    the denominator only. Both `[batch, heads, q_len]`; empty rows give 0.
    """
    mass = torch.exp(keys_lse(call, lse_selection) - lse_everything)
    return mass.nan_to_num(0.0).clamp(max=1.0)


def restriction_js(kept: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence (nats) of a row and its restriction that holds mass `kept`.

    With `m` the kept mass, `1/2 [m ln(2m / (m + 1)) + (1 - m) ln 2 + ln(2 / (m + 1))]`; ln 2 at `m = 0`.
    """
    m = kept.double().clamp(0, 1)
    inside = torch.xlogy(m, 2 * m / (m + 1)) + (1 - m) * math.log(2) + torch.log(2 / (m + 1))
    return (0.5 * inside).clamp(min=0).to(kept.dtype)


def weights_at(call: AttentionCall, lse: Tensor, index: Tensor) -> Tensor:
    """Return `exp(score - lse)` at some keys of each row: float32 `[batch, heads, q_len, m]`.

    `index` int `[batch, heads, q_len, m]`: key indices, -1 = none (0 comes back). `lse` of the same call,
    under
    `Everything` for dense weights. Keys the model does not allow give 0. Costs `m`, not `k_len`, a row.
    """
    weights = torch.zeros(index.shape, device=call.device)
    step = max(1, (1 << 22) // max(1, call.heads * index.shape[-1] * call.head_dim))
    for row, start, stop in _row_chunks(call, step):
        keys = index[row, :, start:stop].long()
        heads = torch.arange(call.heads, device=call.device)[:, None, None] // call.group
        near = call.key[row][heads, keys.clamp(min=0)].to(call.accumulate)
        query = call.query[row, :, start:stop].to(call.accumulate)
        scores = torch.matmul(near, query[..., None])[..., 0] * call.scale
        if call.softcap is not None:
            scores = (scores / call.softcap).tanh() * call.softcap
        allowed = _allowed_at(call, row, start, stop, keys)
        near_weights = torch.exp(scores - lse[row, :, start:stop, None])
        weights[row, :, start:stop] = near_weights.masked_fill(~allowed, 0.0)
    return weights


def _row_chunks(call: AttentionCall, step: int) -> Iterator[tuple[int, int, int]]:
    for row in range(call.batch):
        for start, stop in call.row_blocks(step):
            yield row, start, stop


def _allowed_at(call: AttentionCall, row: int, start: int, stop: int, keys: Tensor) -> Tensor:
    mask = call.allowed
    query = mask.query_index[start:stop, None]
    key = mask.key_index[keys.clamp(min=0)]
    allowed = (keys >= 0) & (key <= query)
    if mask.window is not None:
        allowed &= query - key < mask.window
    if mask.key_valid is not None:
        allowed &= mask.key_valid[row][keys.clamp(min=0)]
    if mask.query_valid is not None:
        allowed &= mask.query_valid[row, start:stop, None]
    if mask.extra is not None:
        allowed &= mask.extra(torch.tensor(row, device=query.device), query, key)
    return allowed
