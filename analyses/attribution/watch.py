"""What attention says about the tokens before one row: an observer of the row's weights, without a map."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparselens.analyses.pattern_scores import sink_alpha
from sparselens.kernels.call import AttentionCall
from sparselens.kernels.kernel import Attended
from sparselens.kernels.selection import Selection
from sparselens.kernels.statistics import Want
from sparselens.workbench.projection import OutputProjection
from sparselens.workbench.session import Session, attention_layers

QUANTITIES = ("attention", "value_weighted", "received")
"""The row's executed weights; these times the norm of what the key's value writes; column means over later rows."""


@dataclass(eq=False)
class RowWatch:
    """`QUANTITIES` of every key at the last row, and whether the row keeps it: `[heads, keys]` a layer."""

    projections: list[OutputProjection]
    layers: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, session: Session) -> RowWatch:
        """Return a watch for the session's model."""
        modules = attention_layers(session.model)
        return cls([OutputProjection.of(module, session.n_heads) for module in modules])

    def want(self, call: AttentionCall) -> Want:
        """Ask for the column sums."""
        del call
        return Want(frozenset({"received"}))

    def saw(self, call: AttentionCall, selection: Selection, attended: Attended) -> None:
        """Recompute one row of weights from its scores and the kernel's log-sum-exp."""
        row = call.q_len - 1
        kept = selection.kept(call, row, row + 1)[0, :, 0].expand(call.heads, -1)
        scores = call.scores(row, row + 1)[0, :, 0]
        weights = torch.exp(scores - attended.lse[0, :, row, None]).masked_fill(~kept, 0.0).float()
        values = call.value[0].repeat_interleave(call.group, dim=0)
        seen_by = torch.stack(
            [call.allowed.rows(start, stop)[0, 0].sum(0) for start, stop in call.row_blocks()]
        ).sum(0)
        found = {
            "attention": weights,
            "value_weighted": weights * self.projections[call.layer].norm(values),
            "received": sink_alpha(attended.statistics["received"][0], seen_by),
            "kept": kept,
        }
        self.layers[call.layer] = {name: value.cpu() for name, value in found.items()}

    def stacked(self, name: str) -> Tensor:
        """Return one quantity of every layer: `[layers, heads, keys]`."""
        return torch.stack([self.layers[layer][name] for layer in sorted(self.layers)])
