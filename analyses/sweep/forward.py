"""A policy's own run of a prompt, compared with the base's: density, what heads write, what tokens cost."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparselens.analyses.stage import answer_rows
from sparselens.analyses.sweep.base import Base
from sparselens.analyses.sweep.plan import acting_rows
from sparselens.kernels.call import AttentionCall
from sparselens.kernels.kernel import Attended
from sparselens.kernels.policy import Policy
from sparselens.kernels.selection import Selection
from sparselens.kernels.statistics import NOTHING, Want
from sparselens.workbench.decode import decoded_tokens
from sparselens.workbench.probe import mean_over
from sparselens.workbench.readout import ROWS


def forward_numbers(base: Base, policy: Policy, *, every_token: bool, tiles: bool = True) -> dict[str, float]:
    """Run the base's prompt under a policy; return the end-to-end numbers of `sweep_metric`.

    Without `every_token` the losses are those of the answer alone, where there is one; without `tiles` the touched
    tiles are not counted.
    """
    stand, prompt = base.stand, base.prompt
    watch = Watch(base, acting_rows(policy, prompt, stand.decode), tiles)
    started = time.perf_counter()
    states, execution = stand.run(prompt, policy, [watch])
    seconds = time.perf_counter() - started - watch.seconds
    found = watch.numbers() | losses(base, states, every_token=every_token or not prompt.answer_ids)
    idle = 0
    if stand.decode is not None:
        prefills = stand.session.n_layers
        idle = (
            prefills
            if policy.decodes_only
            else (execution.selections - prefills if policy.phase == "prefill" else 0)
        )
    found["dense_call_share"] = (execution.dense_calls - idle) / max(execution.selections - idle, 1)
    found["seconds_per_token"] = seconds / len(prompt)
    return found


@dataclass(eq=False)
class Watch:
    """An observer that compares every layer with the base's. `acting`: rows in which the policy may drop keys."""

    base: Base
    acting: Tensor
    tiles: bool
    kept: int = 0
    allowed: int = 0
    computed: list[float] = field(default_factory=list)
    errors: list[Tensor] = field(default_factory=list)
    seconds: float = 0.0

    def want(self, call: AttentionCall) -> Want:
        """Ask for no statistics."""
        del call
        return NOTHING

    def saw(self, call: AttentionCall, selection: Selection, attended: Attended) -> None:
        """Count the layer's pairs and measure what its heads write."""
        started = time.perf_counter()
        visible = call.allowed.counts(1)[0].cpu()
        counts = selection.counts(call)[0].expand(call.heads, -1).cpu()
        self.kept += int(counts[:, self.acting].sum())
        self.allowed += int(visible[self.acting].sum()) * call.heads
        if self.tiles:
            self.computed.append(float(selection.density_computed(call).mean()))
        layer = self.base.layers[call.layer]
        change = attended.output[0].float() - layer.z.float()
        error = self.base.stand.projections[call.layer].norm(change).cpu() / layer.output_norm.cpu()
        rows = counts < visible
        if self.base.prompt.answer_ids:
            rows = torch.zeros_like(rows)
            rows[:, answer_rows(self.base.prompt)] = True
        self.errors.append(mean_over(rows, error))
        self.seconds += time.perf_counter() - started

    def numbers(self) -> dict[str, float]:
        """Return density, the share of touched tiles, and the mean write error of the heads that have rows."""
        errors = torch.stack(self.errors)
        found = {
            "density": self.kept / max(self.allowed, 1),
            "write_error": float(errors.nanmean()) if not bool(errors.isnan().all()) else 0.0,
        }
        return found | ({"density_computed": sum(self.computed) / len(self.computed)} if self.tiles else {})


@torch.no_grad()
def losses(base: Base, states: Tensor | None, *, every_token: bool) -> dict[str, float]:
    """Return losses and divergences of a run from its final states `[tokens, d_model]`; None: of the base itself.

    Those of every token are, where tokens are decoded, those of the decoded ones.
    """
    prompt = base.prompt
    ids = torch.tensor(prompt.token_ids)
    tokens = len(ids)
    nll, kl, change, right = (np.full(tokens - 1, np.nan) for _ in range(4))
    first = 0 if every_token else answer_rows(prompt).start // ROWS * ROWS
    for start in range(first, tokens - 1, ROWS):
        rows = slice(start, min(start + ROWS, tokens - 1))
        target = ids[rows.start + 1 : rows.stop + 1, None]
        before = base.logp(start)[: rows.stop - start].cpu()
        logp = before if states is None else base.stand.log_probabilities(states[rows]).cpu()
        nll[rows] = -logp.gather(-1, target)[:, 0].double().numpy()
        change[rows] = nll[rows] + before.gather(-1, target)[:, 0].double().numpy()
        kl[rows] = torch.linalg.vecdot(before.exp(), before - logp).clamp(min=0).double().numpy()
        right[rows] = (logp.argmax(-1) == target[:, 0]).double().numpy()
    found: dict[str, float] = {}
    if every_token:
        decoded = slice(-decoded_tokens(prompt, base.stand.decode) or None, None)
        found |= {"nll": nll[decoded].mean(), "nll_change": change[decoded].mean(), "kl": kl[decoded].mean()}
    if prompt.answer_ids:
        answer = answer_rows(prompt)
        found |= {"answer_nll": nll[answer].mean(), "answer_nll_change": change[answer].mean()}
        found |= {"answer_kl": kl[answer].mean(), "answer_forced": float(right[answer].all())}
    return {name: float(value) for name, value in found.items()}


def as_numbers(found: dict[str, Any]) -> dict[str, float]:
    """Return what a ledger gave back as plain numbers."""
    return {name: float(value) for name, value in found.items()}
