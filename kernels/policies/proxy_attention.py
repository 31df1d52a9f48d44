"""ProxyAttn: token-level scores of a few pooled heads rank blocks for all heads, each with a budget of its own."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.parts.assemble import tiles_of
from sparselens.kernels.parts.block import Blocks, repeated
from sparselens.kernels.parts.budget import counted, top_k
from sparselens.kernels.parts.odds import widened
from sparselens.kernels.parts.probe import probed
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Selection


@dataclass(frozen=True)
class ProxyAttention(Policy):
    """Keeps, per block of queries, the first block, its own, and the best others by the weights of a proxy head.

    The heads are cut into `proxies` groups. A group's proxy has the mean of its queries and of its keys; a block's
    importance for a block of queries is the largest weight that any of its keys has in the proxy's causal softmax,
    under every `stride`-th query. The budget is the head's own: the fewest blocks, by mean weight, that hold the share
    `gamma` of what the last `block` queries attend to, at least `min_budget` tokens; the same number for every row.
    """

    gamma: float = 0.95
    proxies: int = 1
    stride: int = 4
    min_budget: int = 2048
    block: int = 128
    phase: str = field(default="prefill", kw_only=True)

    name: ClassVar[str] = "proxy_attention"
    budget: ClassVar[tuple[str, ...]] = ("gamma",)
    lookahead: ClassVar[bool] = True
    evidence: ClassVar[str] = "abstract"
    source: ClassVar[str] = (
        "ProxyAttn, arXiv:2509.24745: abstract and public summaries; wyxstriker/ProxyAttn unread"
    )
    short_input: ClassVar[str] = "min_budget, 2,048 tokens, covers short prompts"
    card: ClassVar[str] = (
        "Prefill only. Told by summaries: mean queries and keys of a group, softmax, largest weight in a block, the "
        "budget from the last block of queries, gamma 0.95 or 0.9, stride 4, at least 2,048 tokens, 1 proxy for "
        "Llama-3.1-8B and 4 for Qwen2.5-7B. Ours, unverified: blocks of 128; the stride takes queries and leaves all "
        "keys; a row's budget is a number of blocks, not a share of the blocks that it sees; first block and own are "
        "kept on top of it. The ranking is shared by heads, the budget is not."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 < self.gamma <= 1, f"gamma lies in (0, 1], not {self.gamma}")
        for name in ("proxies", "stride", "block"):
            self.require(getattr(self, name) >= 1, f"{name} is 1 or more, not {getattr(self, name)}")
        self.require(self.min_budget >= 0, f"min_budget is 0 or more, not {self.min_budget}")

    def wider(self, factor: float) -> Policy:
        """Return the policy with the odds of `gamma` `factor` times as high."""
        return replace(self, gamma=widened(self.gamma, factor))

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return the blocks; raises `ValueError` where the key-value heads do not divide into `proxies` groups."""
        del memory
        self.require(
            call.kv_heads % self.proxies == 0,
            f"proxies divide the model's {call.kv_heads} key-value heads, {self.proxies} does not",
        )
        return tiles_of(call, self.block, self.block, self._kept)

    def _kept(self, blocks: Blocks) -> Tensor:
        """Return the map of one sequence: bool `[heads, n_q, n_k]`."""
        count = self._budgets(blocks).clamp(min=-(-self.min_budget // self.block))
        importance = repeated(self._importance(blocks), blocks.call.heads // self.proxies)
        ranked = top_k(importance, count[:, None, None], blocks.reach)
        return ranked | blocks.sink() | (blocks.diagonal & blocks.reach)

    def _budgets(self, blocks: Blocks) -> Tensor:
        """Return how many blocks each head needs for the share `gamma`: int64 `[heads]`."""
        weights = probed(blocks.call, min(self.block, blocks.call.q_len)).mean(1)
        size = blocks.key_block.bincount(minlength=blocks.n_k)
        if self.gamma == 1:
            return torch.full((blocks.call.heads,), blocks.n_k, device=weights.device)
        return counted(blocks.summed_keys(weights) / size.clamp(min=1), self.gamma, "inclusive", size > 0)[
            :, 0
        ]

    def _importance(self, blocks: Blocks) -> Tensor:
        """Return each block's largest weight under each proxy: `[proxies, n_q, n_k]`."""
        call = blocks.call
        query = _pooled(call.query[0].to(call.accumulate), self.proxies)
        key = _pooled(call.key[0].to(call.accumulate), self.proxies)
        proxy = replace(
            call, query=query[None], key=key[None], value=key[None], sinks=None, query_raw=None, key_raw=None
        )
        found = torch.zeros(self.proxies, blocks.n_q, blocks.n_k, dtype=query.dtype, device=call.device)
        for row in range(blocks.n_q):
            places = (blocks.query_block == row).nonzero()[:, 0]
            start, stop = int(places[0]), int(places[-1]) + 1
            weights = proxy.scores(start, stop)[0, :, :: self.stride].softmax(-1).amax(1)
            found[:, row] = blocks.largest_keys(weights)
        return found


def _pooled(tensor: Tensor, groups: int) -> Tensor:
    """Return the means of `[heads, n, d]` over equal groups of heads: `[groups, n, d]`."""
    return tensor.reshape(groups, -1, *tensor.shape[1:]).mean(1)


POLICY = ProxyAttention
