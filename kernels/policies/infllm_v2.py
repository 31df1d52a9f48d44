"""InfLLM-V2: blocks chosen for each token and key-value head by attention to overlapping mean keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.parts.assemble import tiles_of
from sparselens.kernels.parts.block import Blocks
from sparselens.kernels.parts.budget import top_k
from sparselens.kernels.parts.logit import logits
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Selection

_CELLS = 1 << 24  # weights on mean keys that are held at once


@dataclass(frozen=True)
class InfLlmV2(Policy):
    """Keeps, for each query and key-value head, the `topk` best blocks of `block` keys, the forced ones among them.

    Mean keys: key j is the mean over tokens stride · j … stride · j + kernel − 1, seen by queries at its last token
    or later. A block's score is the largest, over the block / stride mean keys that begin in it and the one before, of
    the softmax weight on the mean key, summed over the heads of the group. Forced: the first `init` blocks, the own
    block and the `window` / block before it.
    """

    topk: int = 64
    block: int = 64
    kernel: int = 32
    stride: int = 16
    init: int = 1
    window: int = 2048

    name: ClassVar[str] = "infllm_v2"
    budget: ClassVar[tuple[str, ...]] = ("topk",)
    off_label: ClassVar[bool] = True
    source: ClassVar[str] = "InfLLM-V2, arXiv:2509.24663; OpenBMB/infllmv2_cuda_impl f908e73"
    short_input: ClassVar[str] = "dense below 8192 tokens (dense_len)"
    card: ClassVar[str] = (
        "Chosen for each token, also in prefill, so that decoding keeps what a prefill would. Weights are summed over "
        "the group after the softmax. One block more than the window is forced, as in the authors' kernel. Their code "
        "may take the softmax's denominator from coarser mean keys (128, stride 64); here it is exact. A model is "
        "trained on with it."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("block", 1), ("kernel", 1), ("stride", 1), ("init", 0), ("window", 0)):
            value = getattr(self, name)
            self.require(value >= least, f"{name} is {least} or more, not {value}")
        self.require(
            self.block % self.stride == 0, f"block={self.block} is a multiple of stride={self.stride}"
        )
        self.require(
            self.window % self.block == 0, f"window={self.window} is a multiple of block={self.block}"
        )
        forced = self.init + self.window // self.block + 1
        self.require(self.topk >= forced, f"topk counts the {forced} forced blocks, so it is not {self.topk}")

    def wider(self, factor: float) -> Policy:
        """Return the policy with `topk` and `window` `factor` times as large; never less than what is forced."""
        window = round(self.window * factor / self.block) * self.block
        forced = self.init + window // self.block + 1
        return self(topk=max(round(self.topk * factor), forced), window=window)

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return a map of single queries by key blocks."""
        del memory
        return tiles_of(call, 1, self.block, self._chosen)

    def _chosen(self, blocks: Blocks) -> Tensor:
        forced = blocks.sink(self.init) | blocks.local(self.window // self.block + 1)
        scores = self.scores(blocks).masked_fill(forced, float("inf"))
        return top_k(scores, self.topk, blocks.reach).repeat_interleave(blocks.call.group, 0)

    def scores(self, blocks: Blocks) -> Tensor:
        """Return the score of each key block for each query: `[kv_heads, q_len, n_k]`, 0 where nothing is seen."""
        call, wide = blocks.call, self.block // self.stride
        begins, means = self._mean_keys(call)
        parts = []
        for start, stop in call.row_blocks(max(1, _CELLS // max(1, call.heads * len(begins)))):
            at = call.query_positions[0, start:stop, None]
            seen = begins + self.kernel - 1 <= at
            if call.allowed.window is not None:
                seen &= at - begins < call.allowed.window  # whole in the window: a cache holds no more
            queries = call.query[0, :, start:stop].to(call.accumulate)
            found = logits(call, queries, means).masked_fill(~seen, float("-inf"))
            weights = torch.softmax(found, -1).nan_to_num(0.0)
            weights = weights.view(call.kv_heads, call.group, *weights.shape[1:]).sum(1)
            slots = weights.new_zeros(*weights.shape[:2], blocks.n_k * wide + 1)
            slots[..., begins // self.stride + 1] = weights  # slot 0: the mean key that begins before block 0
            parts.append(slots.unfold(-1, wide + 1, wide).amax(-1))
        return torch.cat(parts, 1)

    def _mean_keys(self, call: AttentionCall) -> tuple[Tensor, Tensor]:
        """Return the first positions `[m]` of the mean keys that the call's keys fill, and them: `[kv_heads, m, d]`."""
        first = int(call.key_positions[0, 0])
        skipped = -first % self.stride
        count = max(0, (call.k_len - skipped - self.kernel) // self.stride + 1)
        begins = first + skipped + self.stride * torch.arange(count, device=call.device)
        if not count:
            return begins, call.key[0, :, :0].to(call.accumulate)
        keys = call.key[0, :, skipped:].to(call.accumulate)
        return begins, keys.unfold(1, self.kernel, self.stride).mean(-1)


POLICY = InfLlmV2
