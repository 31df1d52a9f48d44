"""What every sender wrote on a prompt, kept small: heads as they were before their output projection."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from sparselens.analyses.circuit.place import Ports, Visitor


@dataclass(frozen=True, eq=False)
class Writes:
    """`embedding [tokens, d_model]`, `z [layers, heads, tokens, head_dim]`, `mlps [layers, tokens, d_model]`.

    `stream [tokens, d_model]` is what the last norm read: all of them, and the biases of the output projections.
    """

    embedding: Tensor
    z: Tensor
    mlps: Tensor
    stream: Tensor

    @staticmethod
    def mean(several: Sequence[Writes]) -> Writes:
        """Return the mean, position by position."""
        names = [field.name for field in fields(Writes)]
        return Writes(*(sum(getattr(each, name) for each in several) / len(several) for name in names))

    def minus(self, other: Writes, ports: Ports, into: Tensor, layers: Iterable[int]) -> None:
        """Write this − other into `into [senders, tokens, d_model]`: the embedding, and the senders of some layers."""
        graph = ports.graph
        torch.sub(self.embedding, other.embedding, out=into[0])
        for layer in layers:
            weight = ports.layers[layer].weight.to(into.dtype)
            torch.matmul(self.z[layer] - other.z[layer], weight, out=into[graph.writing(layer)])
            torch.sub(self.mlps[layer], other.mlps[layer], out=into[graph.mlp_writing(layer)])


class Recorder(Visitor):
    """Keeps what is written in one forward pass."""

    def __init__(self, ports: Ports) -> None:
        self.ports = ports
        self.embedding: Tensor | None = None
        self.stream: Tensor | None = None
        self.z: list[Tensor] = []
        self.mlps: list[Tensor] = []

    def enters(self, layer: int, stream: Tensor) -> None:
        """Keep the embedding."""
        if layer == 0:
            self.embedding = precise(stream[0])

    def hands_on(self, layer: int, z: Tensor) -> Tensor | None:
        """Keep the heads."""
        self.z.append(precise(self.ports.layers[layer].by_head(z)))
        return None

    def wrote(self, layer: int, output: Tensor) -> None:
        """Keep the MLP."""
        del layer
        self.mlps.append(precise(output[0]))

    def leaves(self, stream: Tensor) -> Tensor | None:
        """Keep the end."""
        self.stream = precise(stream[0])
        return None

    @property
    def writes(self) -> Writes:
        """What was kept; `RuntimeError` where no forward pass ran."""
        if self.embedding is None or self.stream is None:
            raise RuntimeError("nothing was written: no forward pass ran")
        return Writes(self.embedding, torch.stack(self.z), torch.stack(self.mlps), self.stream)


def precise(tensor: Tensor) -> Tensor:
    """Return a tensor in the type that sums are held in: float64 as it is, all others in float32."""
    return tensor.detach() if tensor.dtype == torch.float64 else tensor.detach().float()
