"""Running only the layers that an intervention can change: the ones before it hand on what they did before.

An intervention on a head of layer 18 leaves layers 0–17 as they were. `recorded` keeps what every layer handed on;
`resumed` runs the same ids again from a layer on. Policies that carry state from layer to layer run all layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from sparselens.workbench.execution import Execution


@dataclass(eq=False)
class Passage:
    """What each decoder layer returned in one forward pass; `stateless` where the policy left nothing behind."""

    layers: Sequence[torch.nn.Module]
    outputs: list[Any] = field(default_factory=list)
    stateless: bool = False


@contextmanager
def recorded(layers: Sequence[torch.nn.Module], execution: Execution) -> Iterator[Passage]:
    """Yield a passage that the one forward pass inside the block fills."""
    passage = Passage(layers)

    def keep(_: Any, __: Any, output: Any) -> None:
        passage.outputs.append(output)

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_hook(keep).remove)
        yield passage
    if len(passage.outputs) != len(layers):
        raise RuntimeError(
            f"a passage is one forward pass; {len(passage.outputs)} layers of {len(layers)} ran"
        )
    passage.stateless = not execution.memory


@contextmanager
def resumed(passage: Passage, first: int, execution: Execution) -> Iterator[None]:
    """Skip the layers before `first` in forward passes of the same ids under the same policy."""
    skipped = min(first, len(passage.layers)) if passage.stateless else 0
    try:
        for layer, output in zip(passage.layers[:skipped], passage.outputs, strict=False):
            layer.__dict__["forward"] = _handing_on(output, execution)
        yield
    finally:
        for layer in passage.layers[:skipped]:
            layer.__dict__.pop("forward", None)


def _handing_on(output: Any, execution: Execution) -> Any:
    def forward(*_: Any, **__: Any) -> Any:
        execution.skipped += 1
        return output

    return forward
