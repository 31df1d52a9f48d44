"""S2-Attention: a shared local window, and of the blocks before it a shard for each key-value head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.parts.formula import formula_tiles
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Selection


@dataclass(frozen=True)
class S2Attention(Policy):
    """Keeps key block b for query block a if a − b < local, or (b + g · step + offset) mod stride = 0.

    g is the key-value head, so that a group shares its blocks; step = max(1, ⌊stride / query heads⌋). b is the
    absolute block number: a block that a head drops when it leaves the window is never needed again. The last `dense`
    key-value heads keep everything; with `alike` all heads take the shard of head 0.
    """

    block: int = 64
    local: int = 32
    stride: int = 8
    offset: int = 0
    dense: int = 0
    alike: bool = False

    name: ClassVar[str] = "s2_attention"
    budget: ClassVar[tuple[str, ...]] = ("local",)
    off_label: ClassVar[bool] = True
    source: ClassVar[str] = "S2-Attention, arXiv:2407.17678; linxihui/dkernel 44c51bd"
    card: ClassVar[str] = (
        "Static; defaults of the README's example, whose comment gives half of that window. Shards are numbered by "
        "key-value heads but the step counts query heads, as in the authors' code. The union over heads covers the "
        "text only if there are at least stride / step key-value heads; the paper trains the model with it."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("block", 1), ("local", 1), ("stride", 1), ("offset", 0), ("dense", 0)):
            value = getattr(self, name)
            self.require(value >= least, f"{name} is {least} or more, not {value}")
        self.require(not (self.alike and self.dense), "dense heads cannot be alike; leave out one of the two")

    @property
    def reads_tensors(self) -> bool:
        """Positions alone decide."""
        return False

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return a tile map, one for each key-value head's group; raises `ValueError` on too many dense heads."""
        del memory
        heads = call.kv_heads
        self.require(self.dense <= heads, f"dense={self.dense}, but there are {heads} key-value heads")
        head = torch.arange(heads, device=call.device)
        step = max(1, self.stride // call.heads)
        shift = torch.zeros_like(head) if self.alike else head * step
        whole = (head >= heads - self.dense)[:, None, None]

        def keeps(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            shard = (key + shift[:, None, None] + self.offset) % self.stride == 0
            kept = (query - key < self.local) | shard | whole
            return kept.repeat_interleave(call.group, 0)

        return formula_tiles(call, self.block, keeps)


POLICY = S2Attention
