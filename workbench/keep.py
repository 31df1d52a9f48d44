"""`--keep`: vectors of every token, on request, into the `activations` table.

`qk` keeps rotated queries and keys (so that exact cells of a map can be drawn without the model), `z` what each head
hands to W_O, `resid` the residual stream before each layer; any other name is a TransformerLens hook of the bridge.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.kernel import Attended
from sparselens.kernels.selection import Selection
from sparselens.kernels.statistics import NOTHING, Want
from sparselens.workbench.probe import Columns, Write
from sparselens.workbench.session import Session, decoder_layers

SHORTHANDS = ("qk", "z", "resid")
_MAPS = ("hook_attn_scores", "hook_pattern")


@dataclass(eq=False)
class Keeper:
    """Takes vectors during one forward pass, as an `Observer`, and hands them on as columns of `activations`."""

    reads_bias: ClassVar[bool] = True

    session: Session
    shorthands: frozenset[str]
    hook_names: tuple[str, ...]
    write: Write | None = None
    heads: dict[int, tuple[int, ...]] | None = None

    def start(self, write: Write, heads: dict[int, tuple[int, ...]] | None) -> None:
        """Begin a prompt, whose rows go to `write`."""
        self.write, self.heads = write, heads

    def want(self, call: AttentionCall) -> Want:
        """Return no statistics: vectors are taken as they are."""
        del call
        return NOTHING

    def saw(self, call: AttentionCall, selection: Selection, attended: Attended) -> None:
        """Keep q, k and z of one layer."""
        del selection
        if call.phase == "decode" or (self.heads is not None and call.layer not in self.heads):
            return
        shown = range(call.heads) if self.heads is None else self.heads[call.layer]
        prefix = f"blocks.{call.layer}.attn"
        if "qk" in self.shorthands:
            groups = sorted({head // call.group for head in shown})
            self._by_head(f"{prefix}.hook_rot_q", call.layer, call.query[0], shown)
            self._by_head(f"{prefix}.hook_rot_k", call.layer, call.key[0], groups)
        if "z" in self.shorthands:
            self._by_head(f"{prefix}.hook_z", call.layer, attended.output[0], shown)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen to the residual stream and to named hooks while the block lasts."""
        handles: list[Any] = []
        try:
            if "resid" in self.shorthands:
                for layer, module in enumerate(decoder_layers(self.session.model)):
                    handles.append(module.register_forward_pre_hook(self._residual(layer), with_kwargs=True))
            for name in self.hook_names:
                point = self.session.bridge.hook_dict[name]
                handles.append(point.register_forward_hook(self._named(name, point)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _residual(self, layer: int) -> Any:
        def look(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            self._whole(f"blocks.{layer}.hook_resid_pre", layer, hidden[0])

        return look

    def _named(self, name: str, point: Any) -> Any:
        layer = int(name.split(".")[1]) if name.startswith("blocks.") else 0

        def look(_: Any, __: Any, output: Any) -> None:
            converter = getattr(point, "hook_conversion", None)
            value = output if converter is None else converter.convert(output)
            if value.ndim == 4:
                self._by_head(name, layer, value[0].transpose(0, 1), range(value.shape[2]))
            elif value.ndim == 3:
                self._whole(name, layer, value[0])
            else:
                raise ValueError(
                    f"--keep {name}: its activation has shape {tuple(value.shape)}; one vector a token is kept"
                )

        return look

    def _add(self, columns: Columns) -> None:
        if self.write is None:
            raise RuntimeError("a keeper sees activations before start()")
        self.write("activations", columns)

    def _by_head(self, hook: str, layer: int, vectors: Tensor, heads: Sequence[int] | range) -> None:
        """Keep `vectors [heads, tokens, width]` of the given heads."""
        shown = list(heads)
        tokens = vectors.shape[1]
        self._add(
            {
                "hook": hook,
                "layer": layer,
                "head": np.repeat(np.asarray(shown, np.uint16), tokens),
                "pos": np.tile(np.arange(tokens, dtype=np.uint32), len(shown)),
                "vector": _half(vectors[shown].reshape(len(shown) * tokens, -1)),
            }
        )

    def _whole(self, hook: str, layer: int, vectors: Tensor) -> None:
        """Keep `vectors [tokens, width]`."""
        self._add(
            {
                "hook": hook,
                "layer": layer,
                "head": None,
                "pos": np.arange(len(vectors), dtype=np.uint32),
                "vector": _half(vectors),
            }
        )


def _half(vectors: Tensor) -> np.ndarray:
    """Return float16 `[n, width]`: rounding is at most 2⁻¹¹ of a component."""
    half: np.ndarray = vectors.detach().to(torch.float16).cpu().numpy()
    return half


def keeper_of(session: Session, names: Sequence[str]) -> Keeper | None:
    """Return a keeper for the given names, None for none; raises `ValueError` on a name that does not exist."""
    if not names:
        return None
    hooks = tuple(name for name in names if name not in SHORTHANDS)
    if hooks:
        known = session.bridge.hook_dict
        unknown = [name for name in hooks if name not in known]
        if unknown:
            raise ValueError(
                f"nothing to keep is called {unknown[0]!r}: give {', '.join(SHORTHANDS)}, or a TransformerLens hook"
                " such as blocks.0.hook_mlp_out"
            )
        maps = [name for name in hooks if name.endswith(_MAPS)]
        if maps:
            raise ValueError(
                f"{maps[0]} is a map of tokens × tokens, not a vector a token; keep qk, from which every cell follows"
            )
    return Keeper(session, frozenset(names) & frozenset(SHORTHANDS), hooks)
