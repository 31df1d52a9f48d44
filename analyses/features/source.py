"""Direct feature attribution: which heads, and which source tokens, wrote a feature's pre-activation.

With the pattern held fixed, what an attention layer hands on is linear in the values: the pre-activation of feature f
at token t is bias_f + Σ over heads h and sources s of A[h, t, s] · v[h, s] · R[h, :, f], where R reads f from a head's
output. The parts sum to the pre-activation exactly (Kissane et al., arXiv 2406.17759). A key that a policy drops takes
its part with it; the mass that the others gain by it adds to theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.kernel import Attended
from sparselens.kernels.selection import Selection
from sparselens.kernels.statistics import NOTHING, Want
from sparselens.workbench.projection import OutputProjection, output_linear
from sparselens.workbench.sae import Sae
from sparselens.workbench.session import Session, attention_layers


@dataclass(frozen=True, eq=False)
class Attention:
    """What one layer's attention did on one prompt: its call, the selection that ran, outputs and normalisers.

    `z` `[heads, tokens, head_dim]`, `lse` `[heads, tokens]`.
    """

    call: AttentionCall
    selection: Selection
    z: Tensor
    lse: Tensor

    def pattern(self, rows: Tensor) -> Tensor:
        """Return the executed weights of some rows: `[heads, n, tokens]`, 0 where nothing was read."""
        parts = []
        for row in rows.tolist():
            kept = self.selection.rows(self.call, row, row + 1)
            scores = self.call.scores(row, row + 1).masked_fill(~kept, float("-inf"))
            parts.append(torch.exp(scores[0, :, 0] - self.lse[:, row, None]).nan_to_num(nan=0.0))
        return torch.stack(parts, 1)

    def dropped(self, rows: Tensor) -> Tensor:
        """Return which keys the model allows and the selection does not keep: bool `[heads, n, tokens]`."""
        parts = []
        for row in rows.tolist():
            allowed = self.call.allowed.rows(row, row + 1)
            missing = allowed & ~self.selection.rows(self.call, row, row + 1)
            parts.append(missing[0, :, 0].expand(self.call.heads, -1))
        return torch.stack(parts, 1)


class Watch:
    """An observer that keeps what the attention of one layer did."""

    def __init__(self, layer: int) -> None:
        self.layer = layer
        self.seen: Attention | None = None

    def want(self, call: AttentionCall) -> Want:
        """Ask for no statistics."""
        del call
        return NOTHING

    def saw(self, call: AttentionCall, selection: Selection, attended: Attended) -> None:
        """Keep the layer; `ValueError` on more than one sequence."""
        if call.layer != self.layer:
            return
        if call.batch != 1:
            raise ValueError(f"features are attributed one prompt at a time, not {call.batch}")
        self.seen = Attention(call, selection, attended.output[0].float(), attended.lse[0].float())

    @property
    def attention(self) -> Attention:
        """What was seen; `RuntimeError` before the layer ran."""
        if self.seen is None:
            raise RuntimeError(f"layer {self.layer} has not run")
        return self.seen


@dataclass(frozen=True, eq=False)
class Reader:
    """How features read what the heads of a layer hand on: `weights [heads, head_dim, features]`, `bias [features]`."""

    weights: Tensor
    bias: Tensor

    @staticmethod
    @torch.no_grad()
    def of(sae: Sae, session: Session) -> Reader:
        """Return the reader of an SAE on `hook_z` or `hook_attn_out`.

        Raises `ValueError` for an SAE on the residual stream, where attention wrote only a part of what is read.
        """
        encoder, bias = sae.encoder
        if sae.site.kind == "hook_z":
            return Reader(encoder.view(session.n_heads, session.head_dim, -1), bias)
        if sae.site.kind != "hook_attn_out":
            raise ValueError(f"{sae.site.name} is not written by one attention layer: give an SAE on hook_z")
        module = attention_layers(session.model)[sae.site.layer]
        added: Any = output_linear(module).bias
        projection = OutputProjection.of(module, session.n_heads).weight
        return Reader(projection @ encoder, bias if added is None else bias + added.float() @ encoder)

    def by_head(self, attention: Attention, rows: Tensor, features: Tensor) -> Tensor:
        """Return each head's part in the pre-activation of feature `features[i]` at `rows[i]`: `[n, heads]`."""
        return torch.einsum("hnd,hdn->nh", attention.z[:, rows], self.weights[:, :, features])

    def by_source(self, attention: Attention, rows: Tensor, features: Tensor) -> Tensor:
        """Return each source token's part, by head: `[n, heads, tokens]`; the sum over both is that of all heads."""
        call = attention.call
        value = call.value[0].float().repeat_interleave(call.group, 0)
        read = torch.einsum("hsd,hdn->nhs", value, self.weights[:, :, features])
        return read * attention.pattern(rows).transpose(0, 1)

    def total(self, parts: Tensor, features: Tensor) -> Tensor:
        """Return the pre-activations that parts `[n, …]` sum to: `[n]`."""
        return parts.flatten(1).sum(1) + self.bias[features]
