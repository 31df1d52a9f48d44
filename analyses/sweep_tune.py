"""Finding the budget at which a method has the wanted density.

The search asks the policy on the base's queries and keys of a few prompts, which costs no run of the model. What is
then measured end to end on all prompts may differ, because a sparse run has other queries: the aim of the search is
corrected by their ratio until the measured density is within 2 %.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from sparselens.analyses.ledger import Ledger
from sparselens.analyses.sweep_base import Base, Stand
from sparselens.analyses.sweep_plan import CLOSE, Point, acting_rows, spread
from sparselens.kernels.policy import Memory, Policy
from sparselens.kernels.policy import parse as parse_policy
from sparselens.kernels.walk import chosen
from sparselens.workbench.decode import decoded_tokens
from sparselens.workbench.prompt import Prompt
from sparselens.workbench.widen import nearest

TOKENS = 1024
"""Prompts of so many tokens together, one at least, are searched on."""
ROUNDS = 3
"""How often the aim of a search is corrected."""


@dataclass(eq=False)
class Tuner:
    """Finds budgets on some of the prompts; what it found is in the ledger."""

    stand: Stand
    prompts: Sequence[Prompt]
    ledger: Ledger
    _bases: list[Base] = field(default_factory=list)

    def tuned(self, method: str, aim: float) -> Policy:
        """Return the method with the budget whose density on the base's queries and keys is nearest to `aim`."""
        policy = parse_policy(method)
        some = self._some()
        names = " ".join(prompt.id for prompt in some)
        key = f"tuned {method} {policy.hash} {aim:.6f} {self.stand.base} {self.stand.decode} on {names}"

        def compute() -> dict[str, np.ndarray]:
            found, _ = nearest(policy, self._density, aim)
            return {"policy": np.asarray(str(found))}

        return parse_policy(str(self.ledger.once(key, compute)["policy"]))

    def _some(self) -> list[Prompt]:
        longest = max(len(prompt) for prompt in self.prompts)
        return spread(self.prompts, max(1, TOKENS // longest))

    @torch.no_grad()
    def _density(self, policy: Policy) -> float:
        """Return the mean density over the prompts, asked on the base's queries and keys."""
        if not self._bases:
            self._bases = [Base.of(self.stand, prompt) for prompt in self._some()]
        bases = self._bases if policy.reads_tensors else self._bases[:1]
        return sum(local_density(base, policy) for base in bases) / len(bases)

    def forget(self) -> None:
        """Let go of the prompts' tensors."""
        self._bases = []


def local_density(base: Base, policy: Policy) -> float:
    """Return kept pairs ÷ allowed pairs on the base's queries and keys, in the rows where the policy acts."""
    memory, acting = Memory(), acting_rows(policy, base.prompt, base.stand.decode)
    decoded = decoded_tokens(base.prompt, base.stand.decode) or None
    kept = allowed = 0
    for layer in base.layers:
        call = layer.call
        selection = chosen(policy, call, memory, decoded)
        counts = selection.counts(call)[0].expand(call.heads, -1).cpu()
        kept += int(counts[:, acting].sum())
        allowed += int(call.allowed.counts(1)[0].cpu()[acting].sum()) * call.heads
    return kept / max(allowed, 1)


def settled(
    points: Sequence[Point], tuner: Tuner, measure: Callable[[Sequence[Point]], list[float]]
) -> list[Point]:
    """Return the points at their densities, as near as `ROUNDS` corrections come.

    `measure` runs points end to end and returns their mean densities.
    """
    aims = {place: point.target for place, point in enumerate(points)}
    best = list(points)
    for _ in range(ROUNDS):
        tried = [
            replace(points[place], policy=tuner.tuned(points[place].method, aim))
            for place, aim in aims.items()
        ]
        tuner.forget()
        again: dict[int, float] = {}
        for place, point, density in zip(list(aims), tried, measure(tried), strict=True):
            found = replace(point, density=density)
            known = best[place]
            if np.isnan(known.density) or abs(density - point.target) < abs(known.density - point.target):
                best[place] = found
            stuck = found.policy == known.policy and not np.isnan(known.density)
            if abs(density - point.target) > CLOSE * point.target and not stuck:
                again[place] = aims[place] * point.target / density
        aims = again
        if not aims:
            break
    return best
