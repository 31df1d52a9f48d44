"""The same policy with another budget: at a wanted density on given prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.kernel import Attended, Kernel
from sparselens.kernels.policy import Policy
from sparselens.kernels.selection import Selection
from sparselens.kernels.statistics import NOTHING, Want
from sparselens.workbench.prompt import Prompt
from sparselens.workbench.session import Session

STEPS = 12
WIDEST = 1e4
CLOSE = 0.02


@dataclass(eq=False)
class DensityWatch:
    """Counts the pairs that a policy keeps and those that the model allows, over all calls it sees."""

    kept: int = 0
    allowed: int = 0

    def want(self, call: AttentionCall) -> Want:
        """Ask for no statistics."""
        del call
        return NOTHING

    def saw(self, call: AttentionCall, selection: Selection, attended: Attended) -> None:
        """Count the call's pairs."""
        del attended
        self.kept += int(selection.counts(call).expand(-1, call.heads, -1).sum())
        self.allowed += int(call.allowed_pairs().sum()) * call.heads

    @property
    def density(self) -> float:
        """Kept pairs ÷ allowed pairs."""
        return self.kept / max(self.allowed, 1)


@torch.no_grad()
def density_of(
    session: Session, policy: Policy, kernel: Kernel | str, prompts: Sequence[Prompt], editors: Any = ()
) -> float:
    """Return the density of a policy on prompts, token-exact over layers and heads. One forward pass a prompt."""
    watch = DensityWatch()
    decoder: Any = session.model.get_decoder()
    with session.under(policy, kernel=kernel, observers=[watch], editors=editors):
        for prompt in prompts:
            ids: Tensor = torch.tensor([prompt.token_ids], device=session.device)
            decoder(input_ids=ids, use_cache=False)
    return watch.density


def widened(
    session: Session, policy: Policy, kernel: Kernel | str, prompts: Sequence[Prompt], density: float
) -> tuple[Policy, float]:
    """Return the policy with its budget widened until its density is nearest to `density`, and that density.

    All `budget` fields are multiplied by one factor. Budgets in whole keys may come no nearer than one key a row.
    Raises `ValueError` where the policy says no budget, and where none comes within 2 % or one key a row.
    """
    if not policy.budget:
        raise ValueError(f"{policy.name} says no budget that could be widened")
    measured: dict[Policy, float] = {}

    def density_at(factor: float) -> float:
        tried = policy.wider(factor)
        if tried not in measured:
            measured[tried] = density_of(session, tried, kernel, prompts)
        return measured[tried]

    low, high = 1.0, 2.0
    while density_at(high) < density and high < WIDEST:
        low, high = high, 2 * high
    for _ in range(STEPS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if density_at(middle) < density else (low, middle)
        if policy.wider(low) == policy.wider(high):
            break
    best = min(measured, key=lambda tried: abs(measured[tried] - density))
    a_key = 2 / max(min((len(prompt) for prompt in prompts), default=1), 1)
    if abs(measured[best] - density) > max(CLOSE * density, a_key):
        raise ValueError(
            f"{policy} cannot be widened to a density of {density:.1%}: nearest is {measured[best]:.1%}"
        )
    return best, measured[best]
