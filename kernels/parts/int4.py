"""SALE's 4-bit products of queries and keys: rounding in groups after the means are taken out.

Of every head's queries and every key-value head's keys the mean over the call is subtracted. What is left is rounded
to the integers -7 … 7, a group at a time, with the scale that maps the group's largest absolute value to 7 (symmetric;
halves go to the even integer). A group has all channels of

- queries: two rows that are 8 apart in a block of 16 (`r` and `r + 8`),
- keys: the tokens of a block of `block_k` whose position modulo 8 is `2t` or `2t + 1`: four groups a block.

These are the rows and columns that one thread of an mma tile holds. The product of the queries' mean with the centred
keys is added back, rounded to the product's integer grid; that of the queries with the keys' mean, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.parts.block import repeated
from sparselens.kernels.parts.logit import capped

LARGEST = 7  # of a signed 4-bit integer, used symmetrically


@dataclass(frozen=True, eq=False)
class Int4:
    """The rounded queries and keys of one sequence.

    `query`, `key`: integers `[heads, q_len, d]`, `[heads, k_len, d]`; `query_step`, `key_step` `[heads, n]` what 1 is
    worth; `mean_query` `[heads, k_len]` the mean query's product with the centred keys, `mean_key` `[heads, q_len]` the
    queries' with the mean key.
    """

    call: AttentionCall
    query: Tensor
    query_step: Tensor
    key: Tensor
    key_step: Tensor
    mean_query: Tensor
    mean_key: Tensor

    @staticmethod
    def of(call: AttentionCall, block_k: int) -> Int4:
        """Round a call of one sequence; key groups lie in blocks of `block_k`."""
        query = call.query[0].to(call.accumulate)
        key = repeated(call.key[0].to(call.accumulate), call.group)
        mean_query, mean_key = query.mean(1, keepdim=True), key.mean(1, keepdim=True)
        centred, at_q, at_k = key - mean_key, call.query_positions[0], call.key_positions[0]
        rounded_query, query_step = rounded(query - mean_query, at_q // 16 * 8 + at_q % 8)
        rounded_key, key_step = rounded(centred, at_k // block_k * 4 + at_k % 8 // 2)
        return Int4(
            call,
            rounded_query,
            query_step,
            rounded_key,
            key_step,
            (mean_query @ centred.transpose(1, 2))[:, 0],
            (query @ mean_key.transpose(1, 2))[..., 0],
        )

    def scores(self, start: int, stop: int) -> Tensor:
        """Return the estimated scores of queries `start:stop`: `[heads, rows, k_len]`, scaled, nothing masked."""
        step = self.query_step[:, start:stop, None] * self.key_step[:, None]
        product = self.query[:, start:stop] @ self.key.transpose(1, 2)
        back = self.mean_query[:, None].expand(step.shape)
        whole = (product + torch.round(back / step)) * step
        estimate = whole.where(step > 0, back) + self.mean_key[:, start:stop, None]
        return capped(self.call, estimate * self.call.scale)


def rounded(values: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Return `[heads, n, d]` as integers (in floats), and what 1 is worth in each row `[heads, n]`; 0 in groups of 0s.

    `group` int64 `[n]` says which rows share a step.
    """
    largest = values.abs().amax(-1)
    place = group - group.min()
    joint = largest.new_zeros(largest.shape[0], int(place.max()) + 1)
    joint.scatter_reduce_(1, place.expand(largest.shape), largest, "amax")
    step = joint.gather(1, place.expand(largest.shape)) / LARGEST
    return torch.round(values / step[..., None]).nan_to_num(nan=0.0), step
