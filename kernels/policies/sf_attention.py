"""SF-Attn of SinkLoRA: groups of neighbouring tokens, shifted by half a group in half of the heads, and sinks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Band, Groups, Selection, Union


@dataclass(frozen=True)
class SfAttention(Policy):
    """Keeps keys of the query's own group of `group` tokens, and the first `sink` tokens.

    In the lower half of the query heads group n holds positions n · group …; in the upper half (from ⌊heads / 2⌋ on)
    boundaries lie half a group earlier, so that the first group is half as long.
    """

    group: int = 2048
    sink: int = 4

    name: ClassVar[str] = "sf_attention"
    budget: ClassVar[tuple[str, ...]] = ("group",)
    off_label: ClassVar[bool] = True
    source: ClassVar[str] = (
        "SinkLoRA, arXiv:2406.05678; Dexter-GT-86/SinkLoRA a741094 (groups as in LongLoRA)"
    )
    card: ClassVar[str] = (
        "Static; a pattern of fine-tuning. The authors' group is a quarter of the input, here a number of tokens, so "
        "that a text's mask does not depend on its length (2048 is the quarter of 8192). Their roll leaks: the first "
        "half group of the upper heads lands behind the last tokens and reads them; here it is masked. Their code has "
        "no sinks, only the abstract has; sink=4 is ours."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.group >= 1, f"group is 1 or more, not {self.group}")
        self.require(self.sink >= 0, f"sink is 0 or more, not {self.sink}")

    @property
    def reads_tensors(self) -> bool:
        """Positions alone decide."""
        return False

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return the groups of both halves of the heads, and the sinks."""
        del memory
        upper = torch.arange(call.heads, device=call.device) >= call.heads // 2
        shift = (upper * (self.group // 2))[None, :, None]
        query, key = (self._groups(at, shift) for at in (call.query_positions, call.key_positions))
        count = int(torch.maximum(query.max(), key.max())) + 1
        own = torch.eye(count, dtype=torch.bool, device=call.device)[None, None]
        return Union((Groups(query, key, own), Band(self.sink, 1)))

    def _groups(self, positions: Tensor, shift: Tensor) -> Tensor:
        """Return the group of each position in each head: int64 `[batch or 1, heads, n]`, -1 on padding."""
        at = positions[:, None]
        return ((at + shift) // self.group).where(at >= 0, -1)


POLICY = SfAttention
