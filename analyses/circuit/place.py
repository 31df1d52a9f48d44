"""The places where a model's nodes read and write the residual stream, and how a forward pass shows them to a visitor.

A visitor may put something else in a place: what queries, keys and values are, what an MLP or the last norm reads.
Norms, rotary positions, the norms of queries and keys, and the attention under its policy stay the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sparselens.analyses.circuit.graph import Graph


class Visitor:
    """Shown what passes; this one changes nothing. Streams are `[1, tokens, d_model]`."""

    def enters(self, layer: int, stream: Tensor) -> None:
        """See what a layer's attention reads, before the norm."""

    def projects(self, layer: int, reading: Reading, output: Tensor) -> Tensor | None:
        """See queries, keys or values before rotary positions, `[1, tokens, n · head_dim]`; return others or None."""

    def hands_on(self, layer: int, z: Tensor) -> Tensor | None:
        """See what the heads hand to the output projection, `[1, tokens, heads · head_dim]`; return another or None."""

    def enters_mlp(self, layer: int, stream: Tensor) -> Tensor | None:
        """See what a layer's MLP reads, before the norm; return another or None."""

    def wrote(self, layer: int, output: Tensor) -> None:
        """See what a layer's MLP writes."""

    def leaves(self, stream: Tensor) -> Tensor | None:
        """See what the last norm reads; return another or None."""


@dataclass(frozen=True, eq=False)
class Reading:
    """A linear layer whose outputs, `head_dim` each, are the receivers `start … start + n - 1` of its layer."""

    module: Any
    start: int
    n: int

    @property
    def stop(self) -> int:
        """The receiver after its last."""
        return self.start + self.n

    @property
    def weight(self) -> Tensor:
        """`[n, d_model, head_dim]`."""
        matrix = matrix_of(self.module)
        return matrix.view(matrix.shape[0], self.n, -1).transpose(0, 1)

    def of(self, normed: Tensor) -> Tensor:
        """Return the output where every receiver reads its own normed stream `[n, tokens, d_model]`."""
        found = (normed @ self.weight).transpose(0, 1).flatten(1)[None]
        return found if self.module.bias is None else found + self.module.bias


@dataclass(frozen=True, eq=False)
class Layer:
    """The places of one decoder layer."""

    norm: Any
    readings: tuple[Reading, ...]
    out: Any
    mlp_norm: Any
    mlp: Any
    heads: int

    @property
    def weight(self) -> Tensor:
        """The output projection by head `[heads, head_dim, d_model]`."""
        matrix = matrix_of(self.out)
        return matrix.view(self.heads, -1, matrix.shape[1])

    def by_head(self, z: Tensor) -> Tensor:
        """Split `[1, tokens, heads · head_dim]` into `[heads, tokens, head_dim]`."""
        return z[0].reshape(z.shape[1], self.heads, -1).transpose(0, 1)


@dataclass(frozen=True, eq=False)
class Ports:
    """The places of a model, and its last norm."""

    graph: Graph
    layers: tuple[Layer, ...]
    norm: Any

    @contextmanager
    def visited(self, visitor: Visitor) -> Iterator[None]:
        """Show every place to a visitor while the block lasts."""
        with ExitStack() as stack:
            for number, layer in enumerate(self.layers):
                for handle in _hooks(number, layer, visitor):
                    stack.callback(handle.remove)
            last = self.norm.register_forward_pre_hook(_entering(visitor.leaves))
            stack.callback(last.remove)
            yield


def _hooks(number: int, layer: Layer, visitor: Visitor) -> Iterator[Any]:
    def at(method: Callable[..., Any], *more: Any) -> Callable[[Tensor], Any]:
        return lambda tensor: method(number, *more, tensor)

    yield layer.norm.register_forward_pre_hook(_entering(at(visitor.enters)))
    for reading in layer.readings:
        yield reading.module.register_forward_hook(_leaving(at(visitor.projects, reading)))
    yield layer.out.register_forward_pre_hook(_entering(at(visitor.hands_on)))
    yield layer.mlp_norm.register_forward_pre_hook(_entering(at(visitor.enters_mlp)))
    yield layer.mlp.register_forward_hook(_leaving(at(visitor.wrote)))


def _entering(see: Callable[[Tensor], Tensor | None]) -> Any:
    def hook(_: Any, args: tuple[Any, ...]) -> Any:
        new = see(args[0])
        return None if new is None else (new, *args[1:])

    return hook


def _leaving(see: Callable[[Tensor], Tensor | None]) -> Any:
    def hook(_: Any, __: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            raise NotImplementedError("an MLP that returns more than one tensor is not taken apart")
        return see(output)

    return hook


def matrix_of(linear: Any) -> Tensor:
    """Return the matrix `[in, out]` of a linear layer; GPT-2's Conv1D holds it that way already."""
    weight: Tensor = linear.weight.detach()
    return weight if type(linear).__name__ == "Conv1D" else weight.T
