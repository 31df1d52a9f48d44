"""The same policy with another budget: at a wanted density on given prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
FINE = 0.005
"""A search ends when the density is within this share of what is wanted."""


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
    if not _can_widen(policy):
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


def nearest(
    policy: Policy, density_of: Callable[[Policy], float], density: float, *, step: float = 4.0
) -> tuple[Policy, float]:
    """Return the policy, wider or narrower, whose density is nearest to `density`, and that density.

    `density_of` measures a policy, and may be asked some thirty times. The factor of `Policy.wider` is bracketed by
    powers of `step` and then narrowed down, so a density that rises with the budget is found within 0.5 %; a policy
    that jumps over it, or that has no budget, comes back with the nearest that was seen.
    """
    measured: dict[Policy, float] = {policy: density_of(policy)}
    if _can_widen(policy):
        _search(policy, density_of, density, step, measured)
    best = min(measured, key=lambda tried: abs(measured[tried] - density))
    return best, measured[best]


def _search(
    policy: Policy,
    density_of: Callable[[Policy], float],
    density: float,
    step: float,
    measured: dict[Policy, float],
) -> None:
    """Fill `measured` with policies ever nearer to the density."""

    def at(factor: float) -> float:
        tried = policy.wider(factor)
        if tried not in measured:
            measured[tried] = density_of(tried)
        return measured[tried]

    rising = at(1.0) < density
    low = high = 1.0
    while (at(high) < density) if rising else (at(low) >= density):
        low, high = (high, step * high) if rising else (low / step, low)
        if high > WIDEST or low < 1 / WIDEST:
            return
    for _ in range(2 * STEPS):
        middle = low * (high / low) ** _share(at(low), at(high), density)
        found = at(middle)
        if abs(found - density) <= FINE * density or policy.wider(low) == policy.wider(high):
            return
        low, high = (middle, high) if found < density else (low, middle)
        if high / low < 1 + FINE / 4:  # a step: nothing lies between
            return


def _share(low: float, high: float, density: float) -> float:
    """Return where between two budgets to look next, as if density were a power of the budget; not at the ends."""
    if not 0 < low < density < high:
        return 0.5
    return min(max(math.log(density / low) / math.log(high / low), 0.15), 0.85)


def _can_widen(policy: Policy) -> bool:
    """Tell whether a policy names a budget, or says itself how it is wider."""
    return bool(policy.budget) or type(policy).wider is not Policy.wider
