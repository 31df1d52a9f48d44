"""Where the nodes of a model read and write, found on the module tree of the Hugging Face model, and checked by a pass.

Known are models whose layers are attention and then MLP, each behind a norm of its own: Llama and its kin (Qwen,
Mistral, SmolLM …; also Phi-3's joint projection) and GPT-2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparselens.analyses.circuit.graph import Graph
from sparselens.analyses.circuit.place import Layer, Ports, Reading, Visitor, matrix_of
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
"""Roundings that the stream may differ by from the sum of what was added."""
_OTHER = 0.05
"""Share of a projection that ours may differ by from the model's: above any rounding, below any other layout."""


def ports_of(session: Session) -> Ports:
    """Return the places of a session's model.

    Raises `NotImplementedError` where heads and MLPs do not simply add to the stream one after the other (norms after
    them, attention beside the MLP), or where a module is not known.
    """
    model, graph = session.model, Graph.of(session)
    if getattr(session.text_config, "use_parallel_residual", False):
        raise NotImplementedError(
            f"{type(model).__name__} runs attention beside the MLP, which does not read what it writes: its edges are"
            " not those of this graph"
        )
    blocks, attentions = decoder_layers(model), attention_layers(model)
    layers = tuple(
        _layer(model, graph, session.head_dim, plain(block), attention)
        for block, attention in zip(blocks, attentions, strict=True)
    )
    found = Ports(graph, layers, _named(model, model.get_decoder(), _LAST_NORMS, "last norm"))
    check = _Check(type(model).__name__, found)
    with torch.no_grad(), found.visited(check):
        model.get_decoder()(input_ids=torch.arange(4, 12, device=session.device)[None], use_cache=False)
    check.finish()
    return found


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
        separate = [_named(model, attention, (f"{kind}_proj",), "projection") for kind in "qkv"]
        starts = [0, graph.heads, graph.heads + graph.kv_heads]
        readings = [
            Reading(_linear(model, module), start, size)
            for module, start, size in zip(separate, starts, sizes, strict=True)
        ]
    for reading in readings:
        width = matrix_of(reading.module).shape[1]
        if width != reading.n * head_dim:
            raise NotImplementedError(
                f"{type(model).__name__} projects to {width} numbers, not to {reading.n} heads of {head_dim}"
            )
    return Layer(
        norm=_named(model, block, _ATTENTION_NORMS, "norm before attention"),
        readings=tuple(readings),
        out=_linear(model, output_linear(attention)),
        mlp_norm=_named(model, block, _MLP_NORMS, "norm before the MLP"),
        mlp=_named(model, block, ("mlp",), "MLP"),
        heads=graph.heads,
    )


def plain(module: Any) -> Any:
    """Return the Hugging Face module inside TransformerLens' component, or the module itself."""
    return getattr(module, "original_component", None) or module


def _named(model: Any, holder: Any, names: tuple[str, ...], what: str) -> Any:
    for name in names:
        found = getattr(holder, name, None)
        if found is not None:
            return plain(found)
    raise NotImplementedError(
        f"{type(model).__name__} has no {what} called {' or '.join(names)}: its edges are not known"
    )


def _linear(model: Any, module: Any) -> Any:
    found = plain(module)
    if type(found) is not torch.nn.Linear and type(found).__name__ != "Conv1D":
        raise NotImplementedError(
            f"{type(model).__name__} projects by {type(found).__name__}, which is not a plain linear layer"
        )
    return found


class _Check(Visitor):
    """Sees that nodes read and write where we think: the stream is what entered plus what heads and MLPs wrote."""

    def __init__(self, model: str, ports: Ports) -> None:
        self.model, self.ports, self.layer = model, ports, -1
        self.stream: Tensor | None = None
        self.passed = 0

    def enters(self, layer: int, stream: Tensor) -> None:
        """Compare with what the layer before left."""
        if layer > 0:
            self._same(stream)
        self.stream, self.layer = stream, layer
        self.passed += 1

    def projects(self, layer: int, reading: Reading, output: Tensor) -> Tensor | None:
        """Compare with what we would project."""
        normed = self.ports.layers[layer].norm.forward(self.stream)
        ours = reading.of(normed.expand(reading.n, -1, -1))
        if float((ours - output).norm()) > _OTHER * float(output.norm()):
            raise NotImplementedError(
                f"{self.model} does not make queries, keys and values of the stream behind the norm alone"
            )
        return None

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
        self.passed += 1
        return None

    def finish(self) -> None:
        """Raise where not every place was passed."""
        if self.passed != len(self.ports.layers) + 1:
            raise NotImplementedError(
                f"{self.model} does not run its layers through the modules that we know (GPT-2 does not once"
                " TransformerLens' bridge is built around it: load it anew)"
            )

    def _add(self, written: Tensor) -> None:
        self.stream = written if self.stream is None else self.stream + written

    def _same(self, stream: Tensor) -> None:
        if self.stream is None or stream.shape != self.stream.shape:
            self.finish()
            return
        error = (stream - self.stream).abs()
        if bool((error > _ROUNDINGS * torch.finfo(stream.dtype).eps * stream.abs().clamp_min(1.0)).any()):
            raise NotImplementedError(
                f"{self.model} does not add attention and then the MLP to the stream in layer {self.layer}:"
                " edges between its nodes are not what they are here"
            )
