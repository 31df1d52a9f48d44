"""What giving a head its dense pattern back would do to the answer's loss, from one backward pass.

To first order the change is Σ ∂loss/∂A · (dense A − executed A), both patterns on the queries and keys that arrive. As
z = A v, this is ⟨∂loss/∂z, z_dense − z⟩ for a head, the same row by row, and for a row and a key
(∂loss/∂z · v) · (dense A − executed A): no map is kept, rows are taken in blocks. The selection is a constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparselens.analyses.stage import answer_losses
from sparselens.analyses.tap import Tap, Tapped, embedded
from sparselens.kernels.kernel import Kernel
from sparselens.kernels.policy import Policy
from sparselens.kernels.selection import Everything
from sparselens.kernels.statistics import NOTHING
from sparselens.workbench.prompt import Prompt
from sparselens.workbench.session import Session

TOP = 4
"""Row and key pairs kept of each head and prompt."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """The predicted change of the answer's loss (nats a token) of one prompt.

    `heads [layers, heads]`, `rows [layers, heads, tokens]`; of each head the `TOP` row-key pairs of largest size:
    `pair_rows, pair_keys, pair_values [layers, heads, TOP]`.
    """

    heads: Tensor
    rows: Tensor
    pair_rows: Tensor
    pair_keys: Tensor
    pair_values: Tensor


def estimate(session: Session, prompt: Prompt, policy: Policy, kernel: Kernel) -> Estimate:
    """Return what `run_dense` would do, head by head, to the answer's loss of a prompt under a policy."""
    tap, _ = Tap(), session.readout
    ids = torch.tensor([prompt.token_ids], device=session.device)
    decoder: Any = session.model.get_decoder()
    with torch.enable_grad(), session.under(policy, kernel=kernel, editors=[tap]):
        states = decoder(inputs_embeds=embedded(session.model, ids), use_cache=False).last_hidden_state[0]
        gradients = tap.gradients(answer_losses(session, states, prompt).mean())
    with torch.no_grad():
        layers = [
            _layer(layer, gradient, kernel) for layer, gradient in zip(tap.layers, gradients, strict=True)
        ]
    rows, at_row, at_key, values = (torch.stack(each) for each in zip(*layers, strict=True))
    return Estimate(rows.sum(-1), rows, at_row, at_key, values)


def _layer(layer: Tapped, gradient: Tensor, kernel: Kernel) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return a layer's rows `[heads, tokens]` and the strongest pairs of each head, three `[heads, TOP]`."""
    call = layer.call
    dense = kernel.attend(call, Everything(), NOTHING)
    rows = (gradient * (dense.output - layer.output)).sum(-1)[0]
    value = call.value[0].repeat_interleave(call.group, dim=0)
    best: list[Tensor] = []
    for start, stop in call.row_blocks():
        scores = call.scores(start, stop)[0]
        kept = layer.selection.kept(call, start, stop)[0]
        change = (
            torch.softmax(scores, -1) - torch.softmax(scores.masked_fill(~kept, -torch.inf), -1).nan_to_num()
        )
        worth = change * (gradient[0, :, start:stop] @ value.transpose(-1, -2))
        index = worth.abs().flatten(1).topk(min(TOP, worth[0].numel())).indices
        found = worth.flatten(1).gather(1, index)
        at_row, at_key = start + index // call.k_len, index % call.k_len
        best.append(torch.stack([at_row.to(found), at_key.to(found), found], -1))
    pairs = torch.cat(best, 1)
    order = pairs[..., 2].abs().topk(TOP, dim=1).indices
    taken = pairs.gather(1, order[..., None].expand(-1, -1, 3))
    return rows.cpu(), taken[..., 0].long().cpu(), taken[..., 1].long().cpu(), taken[..., 2].cpu()
