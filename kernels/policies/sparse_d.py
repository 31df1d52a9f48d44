"""SparseD's idea for autoregressive models: a block mask computed once, on the prompt, and reused after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.parts.assemble import bits_of, tiles_of
from sparselens.kernels.parts.block import Blocks
from sparselens.kernels.parts.budget import top_k
from sparselens.kernels.parts.mass import block_mass
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Selection


@dataclass(frozen=True)
class SparseD(Policy):
    """Keeps, per query head and query block, the ⌊n · ratio⌋ + 1 key blocks with the largest mean weight.

    n counts the key blocks that the query block may see; the own block counts and is always kept. Decoded tokens read
    the prompt blocks that its last query block keeps, and everything since the prompt. With `phase=decode` the prompt
    itself runs in full, as the paper's first steps do.
    """

    ratio: float = 0.3
    block: int = 128

    name: ClassVar[str] = "sparse_d"
    budget: ClassVar[tuple[str, ...]] = ("ratio",)
    off_label: ClassVar[bool] = False
    lookahead: ClassVar[bool] = True
    source: ClassVar[str] = "after SparseD, arXiv:2509.24014; INV-WZQ/SparseD 52155b4"
    card: ClassVar[str] = (
        "An analogue for autoregressive models, not the paper's method: there a diffusion model runs full attention "
        "in its first steps (a fifth of them) and reuses the last one's block means for prompt and generation apart. "
        "Here the weights are exact, so that the prefill saves nothing; what it shows is a mask that is never "
        "refreshed. A row's blocks depend on the later rows of its query block. Short texts: ratio 0.5, block 32."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 <= self.ratio <= 1, f"ratio lies in [0, 1], not {self.ratio}")
        self.require(self.block >= 1, f"block is 1 or more, not {self.block}")

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return the prompt's block map, or for a decoded token what the prompt left; the first call is a prompt."""
        left: list[tuple[int, Tensor]] = memory.get(call.layer, "prompt", [])
        if call.phase == "decode" and left:
            rows = iter(left)
            return bits_of(call, lambda one: self._reused(one, *next(rows)))
        made: list[tuple[int, Tensor]] = []
        tiles = tiles_of(call, self.block, self.block, lambda blocks: self._made(blocks, made))
        memory.set(call.layer, "prompt", made)
        return tiles

    def watch(self, call: AttentionCall, memory: Memory) -> None:
        """Choose on a prompt that runs in full, for the tokens after it."""
        if call.phase == "prefill" and self.phase != "prefill":
            self.select(call, memory)

    def _made(self, blocks: Blocks, made: list[tuple[int, Tensor]]) -> Tensor:
        """Return the map of a prompt; adds its length and the last query block's row to `made`."""
        reach = blocks.reach
        count = (reach.sum(-1, keepdim=True) * self.ratio).long() + 1
        scores = block_mass(blocks).masked_fill(blocks.diagonal, float("inf"))
        kept = top_k(scores, count, reach)
        made.append((int(blocks.call.key_positions[0, -1]) + 1, kept[:, -1]))
        return kept

    def _reused(self, call: AttentionCall, prompt: int, kept: Tensor) -> Tensor:
        """Return what a decoded token keeps: bool `[heads, 1, k_len]`."""
        position = call.key_positions[0]
        block = (position // self.block).clamp(max=kept.shape[-1] - 1)
        return (kept[:, block] | (position >= prompt))[:, None].expand(-1, call.q_len, -1)


POLICY = SparseD
