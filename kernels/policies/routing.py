"""Routing Transformer as a probe: k-means over queries and keys, attention inside a cluster."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.parts.assemble import bits_of
from sparselens.kernels.parts.block import repeated
from sparselens.kernels.parts.cluster import k_means
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Band, Groups, Selection, Union


@dataclass(frozen=True)
class Routing(Policy):
    """Keeps the keys of the query's clusters: per query head, k-means over queries and keys of unit length.

    With `window` each of the `clusters` centroids takes the `window` nearest queries and the `window` nearest keys, so
    that a token may be in several clusters or in none; 0: every token belongs to its nearest centroid alone. Itself is
    always kept. `iterations` of k-means start from tokens drawn with `seed`.
    """

    clusters: int = 16
    window: int = 512
    iterations: int = 10
    seed: int = 0
    phase: str = field(default="prefill", kw_only=True)

    name: ClassVar[str] = "routing"
    budget: ClassVar[tuple[str, ...]] = ("window",)
    off_label: ClassVar[bool] = True
    lookahead: ClassVar[bool] = True
    source: ClassVar[str] = (
        "Routing Transformer, arXiv:2003.05997; lucidrains/routing-transformer 0283dd4 (google-research's in part)"
    )
    evidence: ClassVar[str] = "copies"
    card: ClassVar[str] = (
        "A probe of where queries and keys lie, not a method for a pretrained model: the paper trains queries that are "
        "their own keys, half of the heads local, centroids as a moving average. Here centroids are fitted to each "
        "call, on rotated queries and keys. The mask is causal, membership is not: later tokens take places. With "
        "512 places everything is kept up to 512 tokens. A decoded token is clustered anew; prefill is the default."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("clusters", 1), ("window", 0), ("iterations", 0), ("seed", 0)):
            value = getattr(self, name)
            self.require(value >= least, f"{name} is {least} or more, not {value}")

    def wider(self, factor: float) -> Policy:
        """Return the policy with more places, or without places with fewer clusters."""
        if self.window:
            return super().wider(factor)
        return self(clusters=max(1, round(self.clusters / factor)))

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return a mask of the centroids' places, or groups of neighbours."""
        del memory
        if self.window:
            return bits_of(call, self._places)
        query = torch.full((call.batch, call.heads, call.q_len), -1, device=call.device)
        key = torch.full((call.batch, call.heads, call.k_len), -1, device=call.device)
        for row, queries, keys, one in call.sequences():
            to_query, to_key = self._nearness(one)
            query[row, :, queries], key[row, :, keys] = to_query.argmax(-1), to_key.argmax(-1)
        own = torch.eye(self.clusters, dtype=torch.bool, device=call.device)[None, None]
        return Union((Groups(query, key, own), Band(0, 1)))

    def _places(self, call: AttentionCall) -> Tensor:
        """Return which keys share a cluster with each query of one sequence: bool `[heads, q_len, k_len]`."""
        query, key = (_best(near.transpose(1, 2), self.window) for near in self._nearness(call))
        together = query.transpose(1, 2).float() @ key.float() > 0
        return together | (call.query_positions[0, :, None] == call.key_positions[0])

    def _nearness(self, call: AttentionCall) -> tuple[Tensor, Tensor]:
        """Return cosines to the centroids of queries `[heads, q_len, clusters]` and keys `[heads, k_len, clusters]`."""
        query = normalize(call.query[0].to(call.accumulate), dim=-1)
        key = normalize(repeated(call.key[0].to(call.accumulate), call.group), dim=-1)
        centroids = k_means(torch.cat([query, key], 1), self.clusters, self.iterations, self.seed)
        return query @ centroids.transpose(1, 2), key @ centroids.transpose(1, 2)


def _best(near: Tensor, count: int) -> Tensor:
    """Return which members of the last axis are among its `count` largest: bool as `near`."""
    best = near.topk(min(count, near.shape[-1])).indices
    return torch.zeros_like(near, dtype=torch.bool).scatter_(-1, best, True)


POLICY = Routing
