"""What the base run left of each layer, kept on disk until the policies of the same prompt have been compared with it.

A prompt of 8,192 tokens leaves 1.3 GB of q, k, v and z over 30 layers; keeping them in memory would be most of the
capture's footprint. One file per layer is written while the base runs and read once per policy.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass(frozen=True, eq=False)
class BaseLayer:
    """One layer of the base run of a prompt. Rows are queries (destinations).

    `query [heads, tokens, head_dim]`, `key, value [kv_heads, tokens, head_dim]` after RoPE; `z [heads, tokens,
    head_dim]`; `lse, entropy, sink_mass [heads, tokens]` of the base's executed pattern; `top_index, top_weight
    [heads, tokens, k]`; `output_norm []` the layer's mean ‖attention output‖ over the prompt.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    z: Tensor
    lse: Tensor
    entropy: Tensor
    sink_mass: Tensor
    top_index: Tensor
    top_weight: Tensor
    output_norm: Tensor


class Spool:
    """The base layers of one prompt: `put` while the base runs, `get` while a policy runs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, layer: int, base: BaseLayer) -> None:
        """Keep a layer."""
        tensors = {field.name: getattr(base, field.name).contiguous() for field in fields(base)}
        save_file(tensors, self._path(layer))

    def get(self, layer: int) -> BaseLayer:
        """Return a layer that was kept."""
        return BaseLayer(**load_file(self._path(layer)))

    def clear(self) -> None:
        """Forget the prompt."""
        for path in self._folder.glob("*.safetensors"):
            path.unlink()

    def _path(self, layer: int) -> Path:
        return self._folder / f"{layer:04d}.safetensors"


@contextmanager
def spool(parent: Path | None = None) -> Iterator[Spool]:
    """Yield an empty spool in a temporary folder that is removed on leaving."""
    with tempfile.TemporaryDirectory(prefix=".tmp-spool-", dir=parent) as folder:
        yield Spool(Path(folder))


def on_device(base: BaseLayer, device: torch.device) -> BaseLayer:
    """Return the layer with its tensors on `device`."""
    return BaseLayer(**{field.name: getattr(base, field.name).to(device) for field in fields(base)})
