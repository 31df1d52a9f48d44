"""One patched forward pass: along every edge that is not kept flows what the sender wrote elsewhere.

A receiver reads the stream plus Σ (ablated − current) over its senders outside the circuit, or, where those are the
more, plus the whole difference less that of the kept ones. Current is what the sender writes in this very pass.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sparselens.analyses.circuit.place import Ports, Reading, Visitor
from sparselens.analyses.circuit.writes import Writes, precise


class Mix(Visitor):
    """Patches what receivers read along dropped edges, bool `[senders, receivers]`.

    `difference [senders, tokens, d_model]` is ablated − current: it holds that of layers that are skipped, and is
    filled with that of the others. `row` is the only one that `logits` reads.
    """

    def __init__(self, ports: Ports, dropped: Tensor, ablated: Writes, difference: Tensor, row: int) -> None:
        self.ports, self.dropped, self.ablated, self.row = ports, dropped, ablated, row
        self.difference = difference
        self.total = torch.zeros_like(difference[0])
        self.n_total = 0
        self.normed: Tensor | None = None

    def enters(self, layer: int, stream: Tensor) -> None:
        """Prepare what each receiver of the layer's attention reads."""
        graph = self.ports.graph
        if layer == 0:
            torch.sub(self.ablated.embedding, precise(stream[0]), out=self.difference[0])
        mixed = self._mixed(stream, graph.reading(layer), graph.writing(layer).start)
        self.normed = None if mixed is None else self.ports.layers[layer].norm.forward(mixed)

    def projects(self, layer: int, reading: Reading, output: Tensor) -> Tensor | None:
        """Let every receiver project what it reads."""
        del layer, output
        return None if self.normed is None else reading.of(self.normed[reading.start : reading.stop])

    def hands_on(self, layer: int, z: Tensor) -> Tensor | None:
        """Take the difference of what the heads write."""
        places = self.ports.layers[layer]
        change = self.ablated.z[layer] - precise(places.by_head(z))
        weight = places.weight.to(change.dtype)
        torch.matmul(change, weight, out=self.difference[self.ports.graph.writing(layer)])
        return None

    def enters_mlp(self, layer: int, stream: Tensor) -> Tensor | None:
        """Return what the MLP reads."""
        at = self.ports.graph.mlp_reading(layer)
        return self._mixed(stream, slice(at, at + 1), self.ports.graph.mlp_writing(layer))

    def wrote(self, layer: int, output: Tensor) -> None:
        """Take the difference of what the MLP writes."""
        into = self.difference[self.ports.graph.mlp_writing(layer)]
        torch.sub(self.ablated.mlps[layer], precise(output[0]), out=into)

    def leaves(self, stream: Tensor) -> Tensor | None:
        """Return what the logits of the one row read."""
        dropped = self.dropped[:, self.ports.graph.logits]
        changed = stream.clone()
        changed[0, self.row] += self.difference[dropped, self.row].sum(0).to(stream.dtype)
        return changed

    def _mixed(self, stream: Tensor, receivers: slice, senders: int) -> Tensor | None:
        """Return what some receivers read of the first `senders` senders `[receivers, tokens, d_model]`.

        None where all of it is kept.
        """
        dropped = self.dropped[:senders, receivers]
        out, kept = dropped.any(1), (~dropped).any(1)
        if not bool(out.any()):
            return None
        if int(out.sum()) <= int(kept.sum()):
            change = self._sum(dropped, out)
        else:
            change = self._whole(senders) - self._sum(~dropped, kept)
        return stream + change.to(stream.dtype)

    def _sum(self, edges: Tensor, used: Tensor) -> Tensor:
        """Return Σ differences of the used senders along edges: `[receivers, tokens, d_model]`."""
        where = used.nonzero()[:, 0]
        kind = self.difference.dtype
        found = torch.zeros(
            edges.shape[1], *self.difference.shape[1:], dtype=kind, device=self.difference.device
        )
        flat = found.flatten(1)
        for start, stop in _spans(where):
            part = edges[start:stop].to(self.difference).T
            flat.addmm_(part, self.difference[start:stop].flatten(1))
        return found

    def _whole(self, senders: int) -> Tensor:
        """Return the sum of all differences of the first senders `[tokens, d_model]`."""
        self.total += self.difference[self.n_total : senders].sum(0)
        self.n_total = senders
        return self.total


def _spans(places: Tensor) -> Iterator[tuple[int, int]]:
    """Yield `(start, stop)` of the runs in ascending places, so that no rows are copied."""
    if len(places) == 0:
        return
    ends = (places.diff() > 1).nonzero()[:, 0].tolist()
    starts = [0, *(end + 1 for end in ends)]
    for start, end in zip(starts, [*ends, len(places) - 1], strict=True):
        yield int(places[start]), int(places[end]) + 1
