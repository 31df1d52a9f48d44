"""Where a model's rotary positions come from while a policy is active: each attention layer's own cos and sin.

transformers hands `position_embeddings` (cos, sin) to every attention layer and rotates in a function of the model's
own module. Both are taken as they are, so that scaled variants turn as the model does; a model that does otherwise
(learned positions, heads of which a part is rotated) has no `Rope`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.rope import Rope

Rotate = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(eq=False)
class Ropes:
    """What each layer was given to rotate by: of this call (`given`), and of all positions so far (`tables`)."""

    given: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    tables: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    functions: dict[type, Rotate | None] = field(default_factory=dict)
    _joined: dict[int, tuple[Any, Any, tuple[Tensor, Tensor]]] = field(default_factory=dict)

    def told(self, call: AttentionCall, module: torch.nn.Module) -> AttentionCall:
        """Return the call with its `Rope`, where the model has one and the batch is not padded."""
        if call.layer == 0:
            self._joined.clear()
        pair = self.given.pop(call.layer, None)
        if pair is None or call.allowed.key_valid is not None or pair[0].shape[-1] != call.head_dim:
            return call
        rotate = self._rotate(module, pair)
        if rotate is None:
            return call
        start = int(call.query_positions[0, 0])
        table = self._table(call.layer, start, pair)
        return call if len(table[0]) < start + call.q_len else call.with_rope(Rope(*table, rotate))

    def _table(self, layer: int, start: int, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return cos and sin `[positions, head_dim]` up to this call; layers that share them share the table."""
        before = self.tables.get(layer) if start else None
        shared = self._joined.get(id(pair[0]))
        if shared is not None and shared[0] is before:
            table = shared[2]
        else:
            now = (pair[0][0].detach(), pair[1][0].detach())
            table = (
                now if before is None else (torch.cat([before[0], now[0]]), torch.cat([before[1], now[1]]))
            )
            self._joined[id(pair[0])] = (
                before,
                pair[0],
                table,
            )  # holds the tensor, so that its id stays its own
        self.tables[layer] = table
        return table

    def _rotate(self, module: torch.nn.Module, pair: tuple[Tensor, Tensor]) -> Rotate | None:
        """Return the rotation of the model's own module; None where there is none that turns back."""
        kind = type(module)
        if kind not in self.functions:
            self.functions[kind] = _function(kind, pair)
        return self.functions[kind]


def _function(kind: type, pair: tuple[Tensor, Tensor]) -> Rotate | None:
    """Return `apply_rotary_pos_emb` of the module that defines a layer, if turning back gives what there was."""
    found: Any = getattr(sys.modules[kind.__module__], "apply_rotary_pos_emb", None)
    if found is None:
        return None

    def rotate(tensor: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        turned: Tensor = found(tensor, tensor, cos.to(tensor.dtype), sin.to(tensor.dtype))[0]
        return turned

    cos, sin = (part[0, -1:].double() for part in pair)
    probe = torch.arange(1.0, cos.shape[-1] + 1, dtype=torch.float64, device=cos.device)[None, None, None]
    rope = Rope(cos, sin, rotate)
    here = torch.zeros(1, dtype=torch.int64, device=cos.device)
    back = rope.undo(rope.turn(probe, here), here)
    # cos and sin have at least the eight bits of bfloat16
    return rotate if bool((back - probe).abs().max() <= 2**-6 * probe.max()) else None


@contextmanager
def listening(layers: Sequence[torch.nn.Module]) -> Iterator[Ropes]:
    """Note the `position_embeddings` that each attention layer is given while the block lasts."""
    ropes = Ropes()

    def note(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        del args
        pair = kwargs.get("position_embeddings")
        if isinstance(pair, tuple) and len(pair) == 2:
            ropes.given[int(module.layer_idx)] = pair  # type: ignore[arg-type]

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(note, with_kwargs=True).remove)
        yield ropes
