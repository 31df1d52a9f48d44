"""Where an SAE reads and writes: one vector a token at one layer, under TransformerLens' name of the hook.

`blocks.L.attn.hook_z`: what all heads hand to W_O, concatenated (heads × head_dim); `blocks.L.hook_attn_out`: the
attention output; `blocks.L.hook_resid_pre`, `…_post`: the residual stream before and after the layer (d_model).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sparselens.workbench.projection import output_linear
from sparselens.workbench.session import Session, attention_layers, decoder_layers

_NAME = re.compile(r"blocks\.(\d+)\.(?:attn\.)?(hook_z|hook_attn_out|hook_resid_pre|hook_resid_post)$")
_GIVEN = "blocks.L.attn.hook_z, blocks.L.hook_attn_out, blocks.L.hook_resid_pre, blocks.L.hook_resid_post"

Edit = Callable[[Tensor], Tensor | None]
"""Takes the vectors `[batch, tokens, width]` of a site; returns their replacement, or None to leave them."""


@dataclass(frozen=True)
class Site:
    """One hook of one layer of a session's model."""

    layer: int
    kind: str

    @staticmethod
    def of(session: Session, name: str) -> Site:
        """Return the site of a hook's name; raises `ValueError` on another name or a layer that is not there."""
        found = _NAME.match(name)
        if found is None:
            raise ValueError(f"an SAE sits on {_GIVEN}; not on {name!r}")
        layer = int(found[1])
        if layer >= session.n_layers:
            raise ValueError(f"{name}: this model has {session.n_layers} layers, counted from 0")
        return Site(layer, found[2])

    @property
    def name(self) -> str:
        """TransformerLens' name of the hook."""
        inside = "attn." if self.kind == "hook_z" else ""
        return f"blocks.{self.layer}.{inside}{self.kind}"

    def width(self, session: Session) -> int:
        """Return the length of one vector."""
        if self.kind == "hook_z":
            return session.n_heads * session.head_dim
        return int(session.text_config.hidden_size)

    @contextmanager
    def edited(self, session: Session, edit: Edit) -> Iterator[None]:
        """Show every vector of the site to `edit` while the block lasts, and go on with what it returns."""
        handle = self._register(session, edit)
        try:
            yield
        finally:
            handle.remove()

    def _register(self, session: Session, edit: Edit) -> Any:
        attention, layer = (found(session.model)[self.layer] for found in (attention_layers, decoder_layers))
        if self.kind == "hook_z":
            return output_linear(attention).register_forward_pre_hook(_entering(edit))
        if self.kind == "hook_attn_out":
            return output_linear(attention).register_forward_hook(_leaving(edit))
        if self.kind == "hook_resid_pre":
            return layer.register_forward_pre_hook(_into_layer(edit), with_kwargs=True)
        return layer.register_forward_hook(_leaving(edit))


def _entering(edit: Edit) -> Any:
    def look(_: Any, args: tuple[Any, ...]) -> Any:
        new = edit(args[0])
        return None if new is None else (new, *args[1:])

    return look


def _leaving(edit: Edit) -> Any:
    def look(_: Any, __: Any, output: Any) -> Any:
        value = output[0] if isinstance(output, tuple) else output
        new = edit(value)
        if new is None:
            return None
        return (new, *output[1:]) if isinstance(output, tuple) else new

    return look


def _into_layer(edit: Edit) -> Any:
    def look(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        new = edit(args[0] if args else kwargs["hidden_states"])
        if new is None:
            return None
        if args:
            return (new, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": new}

    return look
