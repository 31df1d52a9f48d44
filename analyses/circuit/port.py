"""Where the nodes of a model read the residual stream and where they write it, on its own Hugging Face modules.

A visitor is shown every such place during a forward pass, and may put something else there: what the queries, keys and
values are, what an MLP or the last norm reads. Norms, rotary positions, the norms of queries and keys, and the
attention under its policy stay the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparselens.analyses.circuit.graph import Graph
from sparselens.workbench.projection import output_linear
from sparselens.workbench.session import Session, attention_layers, decoder_layers

_ATTENTION_NORMS = ("input_layernorm", "ln_1")
_MLP_NORMS = ("post_attention_layernorm", "ln_2")
_LAST_NORMS = ("norm", "ln_f", "final_layernorm")
_JOINT = ("c_attn", "qkv_proj")
_AFTER = (
    "post_feedforward_layernorm",
    "pre_feedforward_layernorm",
    "post_self_attn_layernorm",
    "post_mlp_layernorm",
)
_ROUNDINGS = 8
"""Roundings that a sum of two tensors may differ by in the check of what is added to the stream."""


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
        matrix = _matrix(self.module)
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
        matrix = _matrix(self.out)
        return matrix.view(self.heads, -1, matrix.shape[1])

    def by_head(self, z: Tensor) -> Tensor:
        """Split `[1, tokens, heads · head_dim]` into `[heads, tokens, head_dim]`."""
        return z[0].unflatten(-1, (self.heads, -1)).transpose(0, 1)


@dataclass(frozen=True, eq=False)
class Ports:
    """The places of a model, checked once against a forward pass."""

    graph: Graph
    layers: tuple[Layer, ...]
    norm: Any

    @classmethod
    def of(cls, session: Session) -> Ports:
        """Return the places of a session's model.

        Raises `NotImplementedError` where heads and MLPs do not simply add to the stream one after the other (norms
        after them, attention beside the MLP), or where a module is not known.
        """
        model, graph = session.model, Graph.of(session)
        blocks, attentions = decoder_layers(model), attention_layers(model)
        layers = tuple(
            _layer(model, graph, session.head_dim, _plain(block), attention)
            for block, attention in zip(blocks, attentions, strict=True)
        )
        found = cls(graph, layers, _named(model, model.get_decoder(), _LAST_NORMS, "a last norm"))
        check = _Check(type(model).__name__, found)
        with torch.no_grad(), found.visited(check):
            model.get_decoder()(input_ids=torch.arange(4, 12, device=session.device)[None], use_cache=False)
        check.finish()
        return found

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


def _layer(model: Any, graph: Graph, head_dim: int, block: Any, attention: Any) -> Layer:
    """Return the places of one decoder layer, with its attention module."""
    for name in _AFTER:
        if hasattr(block, name):
            raise NotImplementedError(
                f"{type(model).__name__} has norms after attention or MLP ({name}): what a head writes is scaled by"
                " what others write, so it has no edges of its own"
            )
    sizes = [graph.heads, graph.kv_heads, graph.kv_heads]
    joint = next((getattr(attention, name) for name in _JOINT if hasattr(attention, name)), None)
    if joint is not None:
        readings = [Reading(_linear(model, joint), 0, sum(sizes))]
    else:
        separate = [
            _named(model, attention, (f"{kind}_proj",), f"a projection {kind}_proj") for kind in "qkv"
        ]
        starts = [0, graph.heads, graph.heads + graph.kv_heads]
        readings = [
            Reading(_linear(model, module), start, size)
            for module, start, size in zip(separate, starts, sizes, strict=True)
        ]
    for reading in readings:
        width = _matrix(reading.module).shape[1]
        if width != reading.n * head_dim:
            raise NotImplementedError(
                f"{type(model).__name__} projects to {width} numbers, not to {reading.n} heads of {head_dim}"
            )
    return Layer(
        norm=_named(model, block, _ATTENTION_NORMS, "a norm before attention"),
        readings=tuple(readings),
        out=_linear(model, output_linear(attention)),
        mlp_norm=_named(model, block, _MLP_NORMS, "a norm before the MLP"),
        mlp=_named(model, block, ("mlp",), "an MLP"),
        heads=graph.heads,
    )


def _plain(module: Any) -> Any:
    """Return the Hugging Face module inside TransformerLens' component, or the module itself."""
    return getattr(module, "original_component", None) or module


def _named(model: Any, holder: Any, names: tuple[str, ...], what: str) -> Any:
    for name in names:
        found = getattr(holder, name, None)
        if found is not None:
            return _plain(found)
    raise NotImplementedError(
        f"{type(model).__name__} has not {what} under {' or '.join(names)}: its edges are not known"
    )


def _linear(model: Any, module: Any) -> Any:
    found = _plain(module)
    if type(found) is not torch.nn.Linear and type(found).__name__ != "Conv1D":
        raise NotImplementedError(
            f"{type(model).__name__} projects by {type(found).__name__}, which is not a plain linear layer"
        )
    return found


def _matrix(linear: Any) -> Tensor:
    """Return the matrix `[in, out]` of a linear layer; GPT-2's Conv1D holds it that way already."""
    weight: Tensor = linear.weight.detach()
    return weight if type(linear).__name__ == "Conv1D" else weight.T


class _Check(Visitor):
    """Sees that the stream is what entered plus what the layer's heads, and then its MLP, wrote."""

    def __init__(self, model: str, ports: Ports) -> None:
        self.model, self.ports, self.layer = model, ports, -1
        self.stream: Tensor | None = None
        self.finished = False

    def enters(self, layer: int, stream: Tensor) -> None:
        """Compare with what the layer before left."""
        self._same(stream)
        self.stream, self.layer = stream, layer

    def hands_on(self, layer: int, z: Tensor) -> Tensor | None:
        """Add what the heads write."""
        self._add(self.ports.layers[layer].out.forward(z))
        return None

    def enters_mlp(self, layer: int, stream: Tensor) -> Tensor | None:
        """Compare with what attention left."""
        del layer
        self._same(stream)
        return None

    def wrote(self, layer: int, output: Tensor) -> None:
        """Add what the MLP writes."""
        del layer
        self._add(output)

    def leaves(self, stream: Tensor) -> Tensor | None:
        """Compare the end."""
        self._same(stream)
        self.finished = self.layer + 1 == len(self.ports.layers)
        return None

    def finish(self) -> None:
        """Raise where not every place was passed."""
        if not self.finished:
            raise NotImplementedError(
                f"{self.model} does not run its layers through the modules that we know"
            )

    def _add(self, written: Tensor) -> None:
        if self.stream is not None:
            self.stream = self.stream + written

    def _same(self, stream: Tensor) -> None:
        if self.stream is None:
            return
        error = (stream - self.stream).abs()
        if bool(
            (error > _ROUNDINGS * torch.finfo(stream.dtype).eps * self.stream.abs().clamp_min(1e-3)).any()
        ):
            raise NotImplementedError(
                f"{self.model} does not add attention and then MLP to the stream in layer {self.layer}: edges between"
                " its nodes are not what they are in other models"
            )
