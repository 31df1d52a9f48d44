"""The computation graph of a model: who writes into the residual stream, who reads it, and sets of edges between them.

As in edge attribution patching (Syed et al., arXiv 2310.10348; Hanna et al., arXiv 2403.17806) nodes have no position.
Query heads that share a key-value head share its `k` and `v` receivers: no more can be told apart.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sparselens.kernels.head import Head, head_name
from sparselens.workbench.session import Session


@dataclass(frozen=True)
class Graph:
    """Senders and receivers of a model whose layers are attention, then MLP.

    Senders, in order: `input` (the embedding), then of each layer its query heads `L0H0` … and its MLP `M0`. Receivers:
    of each layer `L0H0.q` for every query head, `L0G0.k` and then `L0G0.v` for every key-value head, and `M0.in`; last
    `logits`. A set of edges is a bool tensor `[senders, receivers]`.
    """

    layers: int
    heads: int
    kv_heads: int

    @classmethod
    def of(cls, session: Session) -> Graph:
        """Return the graph of a session's model."""
        return cls(session.n_layers, session.n_heads, session.n_kv_heads)

    @cached_property
    def senders(self) -> tuple[str, ...]:
        """Names of the senders."""
        layers = range(self.layers)
        return (
            "input",
            *(
                name
                for layer in layers
                for name in (*(head_name((layer, head)) for head in range(self.heads)), f"M{layer}")
            ),
        )

    @cached_property
    def receivers(self) -> tuple[str, ...]:
        """Names of the receivers."""
        names = []
        for layer in range(self.layers):
            names += [f"{head_name((layer, head))}.q" for head in range(self.heads)]
            names += [f"L{layer}G{group}.{kind}" for kind in "kv" for group in range(self.kv_heads)]
            names.append(f"M{layer}.in")
        return (*names, "logits")

    @property
    def n_reading(self) -> int:
        """Number of receivers inside one layer's attention."""
        return self.heads + 2 * self.kv_heads

    def reading(self, layer: int) -> slice:
        """Return the receivers inside a layer's attention."""
        start = layer * (self.n_reading + 1)
        return slice(start, start + self.n_reading)

    def mlp_reading(self, layer: int) -> int:
        """Return the receiver of a layer's MLP."""
        return layer * (self.n_reading + 1) + self.n_reading

    @property
    def logits(self) -> int:
        """The receiver `logits`."""
        return self.layers * (self.n_reading + 1)

    def writing(self, layer: int) -> slice:
        """Return the senders that are a layer's heads; they start where its attention stops reading."""
        start = 1 + layer * (self.heads + 1)
        return slice(start, start + self.heads)

    def mlp_writing(self, layer: int) -> int:
        """Return the sender that is a layer's MLP."""
        return 1 + layer * (self.heads + 1) + self.heads

    @cached_property
    def allowed(self) -> Tensor:
        """Which edges there are: bool `[senders, receivers]`, True where the sender comes before the receiver."""
        before = torch.empty(len(self.receivers), dtype=torch.long)
        for layer in range(self.layers):
            before[self.reading(layer)] = self.writing(layer).start
            before[self.mlp_reading(layer)] = self.mlp_writing(layer)
        before[self.logits] = len(self.senders)
        return torch.arange(len(self.senders))[:, None] < before

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return int(self.allowed.sum())

    def edge(self, sender: str, receiver: str) -> tuple[int, int]:
        """Return the place of an edge in a set; `ValueError` where there is no such edge."""
        for name, there, what in ((sender, self.senders, "sender"), (receiver, self.receivers, "receiver")):
            if name not in there:
                raise ValueError(f"no {what} {name!r}; there are {there[0]}, {there[1]} … {there[-1]}")
        place = self.senders.index(sender), self.receivers.index(receiver)
        if not self.allowed[place]:
            raise ValueError(f"{sender} does not come before {receiver}: there is no such edge")
        return place

    def heads_of(self, edges: Tensor) -> list[Head]:
        """Return the heads that send along one of the edges, in order."""
        sends = self.checked(edges).any(1)
        return [
            (layer, head)
            for layer in range(self.layers)
            for head, sent in enumerate(sends[self.writing(layer)].tolist())
            if sent
        ]

    def checked(self, edges: Tensor) -> Tensor:
        """Return a set of edges without those that do not exist; `ValueError` on another shape or type."""
        if edges.shape != self.allowed.shape or edges.dtype != torch.bool:
            wanted = list(self.allowed.shape)
            raise ValueError(f"edges are bool {wanted}, not {edges.dtype} {list(edges.shape)}")
        return edges.cpu() & self.allowed

    @cached_property
    def _feeds(self) -> Tensor:
        """Which receiver feeds which sender: `[receivers, senders]`, 1.0 or 0.0."""
        feeds = torch.zeros(len(self.receivers), len(self.senders))
        group = self.heads // self.kv_heads
        for layer in range(self.layers):
            start, first = self.reading(layer).start, self.writing(layer).start
            for head in range(self.heads):
                key = start + self.heads + head // group
                feeds[[start + head, key, key + self.kv_heads], first + head] = 1
            feeds[self.mlp_reading(layer), self.mlp_writing(layer)] = 1
        return feeds

    def pruned(self, edges: Tensor) -> Tensor:
        """Return the edges that lie on a way from `input` to `logits`: the others carry nothing.

        A node that nobody reads, or that reads nobody, is dropped with its edges until nothing changes.
        """
        kept = self.checked(edges)
        while True:
            fed = kept.any(0).float() @ self._feeds > 0
            fed[0] = True
            alive = fed & kept.any(1)
            wanted = self._feeds @ alive.float() > 0
            wanted[self.logits] = True
            after = kept & alive[:, None] & wanted
            if torch.equal(after, kept):
                return kept
            kept = after

    def best(self, scores: Tensor, count: int) -> Tensor:
        """Return the `count` edges of largest |score|, pruned; `ValueError` where there are not as many."""
        size = self._sizes(scores, count).flatten()
        kept = torch.zeros_like(size, dtype=torch.bool)
        kept[size.topk(count).indices] = True
        return self.pruned(kept.view_as(self.allowed))

    def greedy(self, scores: Tensor, count: int) -> Tensor:
        """Return `count` edges grown from `logits`: always the largest |score| into a node that is reached; pruned."""
        size = self._sizes(scores, count)
        kept = torch.zeros_like(self.allowed)
        queue: list[tuple[float, int, int]] = []
        reached: set[int] = set()

        def reach(receiver: int) -> None:
            if receiver not in reached:
                reached.add(receiver)
                for sender in self.allowed[:, receiver].nonzero()[:, 0].tolist():
                    heapq.heappush(queue, (-float(size[sender, receiver]), sender, receiver))

        reach(self.logits)
        for _ in range(count):
            if not queue:
                break
            _, sender, receiver = heapq.heappop(queue)
            kept[sender, receiver] = True
            for feeding in self._feeds[:, sender].nonzero()[:, 0].tolist():
                reach(feeding)
        return self.pruned(kept)

    def _sizes(self, scores: Tensor, count: int) -> Tensor:
        if not 0 <= count <= self.n_edges:
            raise ValueError(f"this model has {self.n_edges} edges: {count} cannot be taken")
        return scores.detach().cpu().float().abs().masked_fill(~self.allowed, -1.0)
