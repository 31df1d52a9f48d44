"""What ablating each edge would do to the metric, all of them from a few backward passes.

Edge attribution patching (Syed et al., arXiv 2310.10348): to first order the change is (ablated − clean write of the
sender) · ∂metric/∂(what the receiver reads, before its norm), summed over positions. With several steps the gradient is
the mean over inputs on the straight line from the ablated embedding to the clean one (EAP-IG, Hanna et al., arXiv
2403.17806). The points are k/steps for k = 1 … steps, so that one step is the gradient at the clean prompt; the
authors' code takes k = 0 … steps − 1. The policy selects anew at every point; its selection is a constant in gradients.

On SmolLM2-135M, four IOI pairs, dense, the 50 edges of largest size and 50 random ones, Pearson with exact patches is
0.89, 0.94, 0.89, 0.96 with five steps (0.86, 0.90, 0.87, 0.95 at the authors' points) and 0.46, 0.38, 0.74, 0.72 with
one. Where attention has saturated the gradient does not see its queries and keys, and a loud write that nobody reads
looks important through the norm: try what matters by `exact`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparselens.analyses.circuit.patch import Run
from sparselens.analyses.circuit.place import Ports, Reading, Visitor
from sparselens.analyses.circuit.writes import precise
from sparselens.workbench.site import Site


class _Taps(Visitor):
    """Keeps what every receiver reads in the graph of one forward pass."""

    def __init__(self, ports: Ports) -> None:
        self.ports = ports
        self.streams: list[Tensor] = []
        self.projected: list[Tensor] = []
        self.mlps: list[Tensor] = []
        self.last: list[Tensor] = []

    def enters(self, layer: int, stream: Tensor) -> None:
        """Keep the stream that queries, keys and values are made of."""
        del layer
        self.streams.append(stream.detach())

    def projects(self, layer: int, reading: Reading, output: Tensor) -> Tensor | None:
        """Keep queries, keys or values."""
        del layer, reading
        self.projected.append(output)
        return None

    def enters_mlp(self, layer: int, stream: Tensor) -> Tensor | None:
        """Fork the stream: gradients of the fork come through the MLP alone."""
        del layer
        self.mlps.append(stream.view_as(stream))
        return self.mlps[-1]

    def leaves(self, stream: Tensor) -> Tensor | None:
        """Fork the stream for the logits."""
        self.last.append(stream.view_as(stream))
        return self.last[-1]


def attribute(run: Run, steps: int = 5) -> Tensor:
    """Return the predicted change of the metric when each edge alone is ablated: `[senders, receivers]` on the CPU.

    0 where there is no edge. `steps` 1 is plain edge attribution patching; `ValueError` below 1.
    """
    if steps < 1:
        raise ValueError(f"attribution takes 1 step or more, not {steps}")
    difference = run.difference()
    scores = difference.new_zeros(run.graph.allowed.shape)
    for step in range(1, steps + 1):
        _add(run, step / steps, difference, scores)
    return (scores / steps).cpu()


def exact(run: Run, edges: Sequence[tuple[int, int]]) -> list[float]:
    """Return the change of the metric when each edge alone is ablated, one pass an edge."""
    found = []
    for sender, receiver in edges:
        kept = run.graph.allowed.clone()
        if not kept[sender, receiver]:
            raise ValueError(f"there is no edge from sender {sender} to receiver {receiver}")
        kept[sender, receiver] = False
        found.append(run.circuit(kept) - run.full())
    return found


def _add(run: Run, share: float, difference: Tensor, scores: Tensor) -> None:
    """Add the scores at one input: `share` of the clean embedding, the rest of the ablated one."""
    start = run.ablated.embedding.lerp(run.clean.embedding, share)
    leaf = start.to(run.session.dtype)[None].requires_grad_()
    taps = _Taps(run.ports)
    with (
        torch.enable_grad(),
        run.session.under(run.policy, kernel=run.kernel),
        Site(0, "hook_resid_pre").edited(run.session, lambda _: leaf),
        run.ports.visited(taps),
    ):
        metric = run.measured(run.states())
        gradients = torch.autograd.grad(metric, [*taps.projected, *taps.mlps, *taps.last])
    graph, flat = run.graph, difference.flatten(1)
    projected = iter(gradients[: len(taps.projected)])
    mlps = gradients[len(taps.projected) : -1]
    for layer, places in enumerate(run.ports.layers):
        parts = []
        for reading in places.readings:
            gradient = next(projected)[0]
            by_head = gradient.reshape(len(gradient), reading.n, -1).transpose(0, 1)
            parts.append(by_head @ reading.weight.transpose(1, 2))
        read = _before(places.norm, taps.streams[layer], torch.cat(parts))
        before = graph.writing(layer).start
        scores[:before, graph.reading(layer)] += (precise(read).flatten(1) @ flat[:before].T).T
        before = graph.mlp_writing(layer)
        scores[:before, graph.mlp_reading(layer)] += flat[:before] @ precise(mlps[layer]).flatten()
    row = run.row
    scores[:, graph.logits] += difference[:, row] @ precise(gradients[-1][0, row])


def _before(norm: Any, stream: Tensor, gradient: Tensor) -> Tensor:
    """Return gradients `[n, tokens, d_model]` of a norm's output as gradients of what it reads."""
    with torch.enable_grad():
        leaf = stream.expand_as(gradient).contiguous().requires_grad_()
        (found,) = torch.autograd.grad(norm.forward(leaf), leaf, gradient)
    return found
