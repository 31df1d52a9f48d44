"""From one sequence to a batch: groups of queries that read groups of keys, as one selection."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.selection import Groups


class Grouping(NamedTuple):
    """The groups of one sequence: which queries and keys are in which, and which groups of keys a group reads.

    `query` int64 `[heads or 1, q_len]` and `key` `[heads or 1, k_len]` name groups, -1 = none; `map` bool
    `[heads or 1, query groups, key groups]`.
    """

    query: Tensor
    key: Tensor
    map: Tensor


def groups_of(call: AttentionCall, choose: Callable[[AttentionCall], Grouping]) -> Groups:
    """Return the groups that `choose` makes for each sequence, as one selection; padding is in no group.

    `choose` gets a call of one sequence without padding.
    """
    made = [(row, queries, keys, choose(one)) for row, queries, keys, one in call.sequences()]
    heads = [max((part[axis].shape[0] for *_, part in made), default=1) for axis in range(3)]
    high, wide = (max((part.map.shape[axis] for *_, part in made), default=1) for axis in (1, 2))
    query = torch.full((call.batch, heads[0], call.q_len), -1, dtype=torch.int64, device=call.device)
    key = torch.full((call.batch, heads[1], call.k_len), -1, dtype=torch.int64, device=call.device)
    table = torch.zeros(call.batch, heads[2], high, wide, dtype=torch.bool, device=call.device)
    for row, queries, keys, part in made:
        query[row, :, queries] = part.query
        key[row, :, keys] = part.key
        table[row, :, : part.map.shape[1], : part.map.shape[2]] = part.map
    return Groups(query, key, table)
