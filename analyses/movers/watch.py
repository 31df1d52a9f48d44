"""What one row reads: its weights, the values behind them, which keys it keeps, and scores without positions."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.kernel import Attended
from sparselens.kernels.selection import Selection
from sparselens.kernels.statistics import NOTHING, Want


@dataclass(eq=False)
class EndWatch:
    """An observer of one row of every layer.

    `weights [heads, keys]` as executed, `values [heads, keys, head_dim]`, `kept [heads, keys]`, and of the keys in
    `labels` the `raw` scores q · k before rotary positions `[heads, labels]`.
    """

    row: int
    labels: tuple[int, ...] = ()
    weights: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)
    raw: list[Tensor] = field(default_factory=list)

    def want(self, call: AttentionCall) -> Want:
        """Ask for no statistics."""
        del call
        return NOTHING

    def saw(self, call: AttentionCall, selection: Selection, attended: Attended) -> None:
        """Recompute the row's weights from its scores and the kernel's log-sum-exp."""
        kept = selection.kept(call, self.row, self.row + 1)[0, :, 0].expand(call.heads, -1)
        scores = call.scores(self.row, self.row + 1)[0, :, 0]
        weights = torch.exp(scores - attended.lse[0, :, self.row, None]).masked_fill(~kept, 0.0)
        self.weights.append(weights[:, : self.row + 1])
        self.kept.append(kept[:, : self.row + 1].cpu())
        value = call.value[0].to(call.accumulate).repeat_interleave(call.group, dim=0)
        self.values.append(value[:, : self.row + 1])
        if self.labels:
            self.raw.append(self._raw(call))

    def _raw(self, call: AttentionCall) -> Tensor:
        """Return q · k of the labels as they are before rotary positions turn them."""
        query = call.query if call.query_raw is None else call.query_raw()
        key = call.key if call.key_raw is None else call.key_raw()
        chosen = key[0].repeat_interleave(call.group, dim=0)[:, list(self.labels)].to(call.accumulate)
        found: Tensor = (chosen @ query[0, :, self.row, :, None].to(call.accumulate))[..., 0].cpu()
        return found
