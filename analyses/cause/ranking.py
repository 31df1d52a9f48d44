"""What heads can be ranked by, measured on prompts that the test does not use.

`write_error`: how much a head's write on the answer's rows differs from the base's. `kept_mass`: how much of its dense
mass the policy dropped, over all rows. `kept_mass_answer`: the same on the answer's rows. `retrieval`: Wu et al. on the
base. `estimate`: the fall of the answer's loss that one backward pass predicts for giving the head back.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparselens.analyses.cause.estimate import estimate
from sparselens.analyses.retrieval_watch import answer_place
from sparselens.analyses.roles.retrieval import Answered, one_run
from sparselens.analyses.stage import answer_rows
from sparselens.kernels.call import AttentionCall
from sparselens.kernels.kernel import Attended, Kernel
from sparselens.kernels.policy import Policy
from sparselens.kernels.selection import Everything, Selection
from sparselens.kernels.statistics import NOTHING, Want, kept_mass
from sparselens.workbench.projection import OutputProjection, output_linear, residual_norm
from sparselens.workbench.prompt import Prompt
from sparselens.workbench.session import Session, attention_layers

ORDERS = ("write_error", "retrieval", "kept_mass", "kept_mass_answer", "estimate")
DEFINITIONS = {
    "write_error": "mean over the rows that predict the answer of ‖W_O^h (z_run − z_base)‖ ÷ the layer's mean "
    "‖attention output‖ of the base",
    "retrieval": "Wu et al.'s retrieval score under the base, over the ranking prompts that it answers",
    "kept_mass": "1 − kept mass: dense mass that the policy dropped, mean over all rows",
    "kept_mass_answer": "1 − kept mass, mean over the rows that predict the answer",
    "estimate": "fall of the answer's loss (nats a token) predicted for run_dense of the head by one backward pass",
}
ROWS = {"write_error": "span:answer", "retrieval": "generated", "kept_mass": "all"}


@dataclass(eq=False)
class Writes:
    """An observer: what each layer's heads hand on at some rows, `[heads, rows, head_dim]`, and the mass they keep."""

    rows: slice
    kernel: Kernel
    counterfactual: bool
    z: list[Tensor] = field(default_factory=list)
    dropped: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)

    def want(self, call: AttentionCall) -> Want:
        """Ask for no statistics."""
        del call
        return NOTHING

    def saw(self, call: AttentionCall, selection: Selection, attended: Attended) -> None:
        """Keep the rows' outputs, and 1 − kept mass over all rows and over these, `[2, heads]`."""
        self.z.append(attended.output[0, :, self.rows].cpu())
        if not self.counterfactual:
            return
        lost = torch.zeros(call.heads, call.q_len)
        if not isinstance(selection, Everything):
            dense = self.kernel.attend(call, Everything(), NOTHING)
            lost = 1 - kept_mass(call, attended.lse, dense.lse)[0].cpu()
        self.dropped.append(torch.stack([lost.mean(-1), lost[:, self.rows].mean(-1)]))

    def listen(self, modules: list[Any], stack: ExitStack) -> None:
        """Keep each layer's mean ‖attention output‖ too, while the stack is open."""
        for module in modules:
            stack.callback(output_linear(module).register_forward_hook(self._written).remove)

    def _written(self, _: Any, __: Any, output: Tensor) -> None:
        self.norms.append(residual_norm(output).mean().cpu())


def ranking_numbers(
    session: Session, prompt: Prompt, base: Policy, policy: Policy, kernel: Kernel, orders: tuple[str, ...]
) -> dict[str, Any]:
    """Return the scores of one prompt `[layers · heads]` by order; `answered` says whether `retrieval` counts."""
    found: dict[str, Any] = {}
    if {"write_error", "kept_mass", "kept_mass_answer"} & set(orders):
        found |= _written(session, prompt, base, policy, kernel)
    if "retrieval" in orders:
        place = answer_place(prompt) if "needle" in prompt.spans else None
        if place is None:
            raise ValueError(
                f"{prompt.name} has no needle to be retrieved: rank by something else than retrieval"
            )
        run = one_run(session, prompt, place, base, base, kernel)
        found["retrieval"] = run["retrieval"]
        found["answered"] = np.array(Answered(prompt, place, tuple(run["produced"].tolist())).counts)
    if "estimate" in orders:
        found["estimate"] = -estimate(session, prompt, policy, kernel).heads.flatten().numpy()
    return found


@torch.no_grad()
def _written(
    session: Session, prompt: Prompt, base: Policy, policy: Policy, kernel: Kernel
) -> dict[str, Any]:
    """Return write_error and lost mass of a prompt's heads."""
    modules = attention_layers(session.model)
    ids = torch.tensor([prompt.token_ids], device=session.device)
    decoder: Any = session.model.get_decoder()
    seen = []
    for which in (base, policy):
        writes = Writes(answer_rows(prompt), kernel, counterfactual=which is policy)
        with ExitStack() as stack:
            writes.listen(modules, stack)
            stack.enter_context(session.under(which, kernel=kernel, observers=[writes]))
            decoder(input_ids=ids, use_cache=False)
        seen.append(writes)
    before, after = seen
    errors = [
        OutputProjection.of(module, session.n_heads).norm((b - a).to(session.device)).mean(-1).cpu() / norm
        for module, a, b, norm in zip(modules, before.z, after.z, before.norms, strict=True)
    ]
    lost = torch.stack(after.dropped)
    return {
        "write_error": torch.stack(errors).flatten().numpy(),
        "kept_mass": lost[:, 0].flatten().numpy(),
        "kept_mass_answer": lost[:, 1].flatten().numpy(),
    }
