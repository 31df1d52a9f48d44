"""AnchorAttention: keys whose score comes near to the maximum of sink and window, chosen for groups of rows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.parts.assemble import tiles_of
from sparselens.kernels.parts.block import Blocks
from sparselens.kernels.parts.logit import logits
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Selection


@dataclass(frozen=True)
class AnchorAttention(Policy):
    """Keeps the first `block` keys, each group's own rows, and the key columns within `theta` of the anchor.

    A group is `block * step` queries. A row's anchor is its largest score over the first `block` keys and those from
    the group's first position on; it is averaged over each `block` queries, as the queries are. A key between the
    first block and the group is kept for the whole group where the mean query of any of its `step` blocks scores at
    least that block's mean anchor less `theta` (in logits: a larger `theta` keeps more).
    """

    theta: float = 12.0
    step: int = 16
    block: int = 128
    phase: str = field(default="prefill", kw_only=True)

    name: ClassVar[str] = "anchor_attention"
    budget: ClassVar[tuple[str, ...]] = ("theta",)
    lookahead: ClassVar[bool] = True
    evidence: ClassVar[str] = "copies"
    source: ClassVar[str] = "AnchorAttention, arXiv:2505.23520; read in public copies of the authors' kernels"
    short_input: ClassVar[str] = (
        "refuses lengths that are no multiple of block * step, 2,048; up to there all is local"
    )
    card: ClassVar[str] = (
        "Prefill only, per query head. theta is a difference of logits, not a probability. The copies disagree: one "
        "counts the first 2,048 keys as sink and scans from key 128 on (a column can count twice), and its scan ends "
        "one block before the group. Here the sink is the first block, the scan goes from there to the group, and "
        "nothing counts twice. Keeps everything up to block * step tokens: give smaller ones for short texts. A "
        "group's columns depend on its later rows."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.theta >= 0, f"theta is 0 or more, not {self.theta}")
        self.require(self.step >= 1, f"step is 1 or more, not {self.step}")
        self.require(self.block >= 1, f"block is 1 or more, not {self.block}")

    def wider(self, factor: float) -> Policy:
        """Return the policy with `theta` times `factor`."""
        return replace(self, theta=self.theta * factor)

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return the columns of each group of rows."""
        del memory
        return tiles_of(call, self.block * self.step, 1, self._columns)

    def _columns(self, groups: Blocks) -> Tensor:
        """Return which key positions each group of queries keeps: bool `[heads, groups, n_k]`."""
        call, group = groups.call, self.block * self.step
        starts = (groups.first + torch.arange(groups.n_q, device=call.device)) * group
        rows = Blocks.of(call, self.block)
        anchor = rows.pooled_queries(self._anchors(call, starts[groups.query_block])[..., None])
        scores = logits(
            call, rows.pooled_queries(call.query[0].to(call.accumulate)), call.key[0].to(call.accumulate)
        )
        near = scores + self.theta >= anchor
        owner = (rows.first + torch.arange(rows.n_q, device=call.device)) // self.step - groups.first
        found = torch.zeros(call.heads, groups.n_q, call.k_len, dtype=torch.int32, device=call.device)
        found.index_add_(1, owner, near.int())
        at = torch.arange(groups.n_k, device=call.device)
        kept = ((at < self.block) | (at >= starts[:, None])).expand(call.heads, -1, -1).clone()
        kept[..., call.key_positions[0]] |= found > 0
        return kept

    def _anchors(self, call: AttentionCall, starts: Tensor) -> Tensor:
        """Return each row's largest score over sink and own group, which starts at `starts`: `[heads, q_len]`."""
        at, parts = call.key_positions[0], []
        for start, stop in call.row_blocks():
            near = (at < self.block) | (at >= starts[start:stop, None])
            parts.append(call.scores(start, stop)[0].masked_fill_(~near, float("-inf")).amax(-1))
        return torch.cat(parts, -1)


POLICY = AnchorAttention
