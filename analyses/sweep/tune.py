"""Finding the budget at which a method has the wanted density.

The search asks the policy on the base's queries and keys of a few prompts, which costs no run of the model. What is
then measured end to end on all prompts may differ, because a sparse run has other queries: the aim of the search is
corrected by their ratio until the measured density is within 2 %. The first correction is foretold from a few runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from sparselens.analyses.ledger import Ledger
from sparselens.analyses.sweep.base import Base, Stand
from sparselens.analyses.sweep.plan import CLOSE, Point, acting_rows, spread
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

    def tuned(self, method: str, aim: float, start: Policy | None = None) -> Policy:
        """Return the method with the budget whose density on the base's queries and keys is nearest to `aim`.

        `start`: a policy near it, where one is known.
        """
        policy = parse_policy(method) if start is None else start
        names = " ".join(prompt.id for prompt in self.some)
        key = f"tuned {policy} {policy.hash} {aim:.6f} {self.stand.base} {self.stand.decode} on {names}"
        step = 4.0 if start is None else 1.5

        def compute() -> dict[str, np.ndarray]:
            found, _ = nearest(policy, self._density, aim, step=step)
            return {"policy": np.asarray(str(found))}

        return parse_policy(str(self.ledger.once(key, compute)["policy"]))

    @property
    def some(self) -> list[Prompt]:
        """The prompts that are searched on."""
        longest = max(len(prompt) for prompt in self.prompts)
        return spread(self.prompts, max(1, TOKENS // longest))

    @torch.no_grad()
    def _density(self, policy: Policy) -> float:
        """Return the mean density over the prompts, asked on the base's queries and keys."""
        if not self._bases:
            self._bases = [Base.of(self.stand, prompt) for prompt in self.some]
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
    points: Sequence[Point],
    tuner: Tuner,
    foretell: Callable[[Sequence[Point]], list[float]],
    measure: Callable[[Sequence[Point]], list[float]],
) -> list[Point]:
    """Return the points at their densities, as near as `ROUNDS` corrections come.

    `foretell` says from some runs what density points will have, `measure` runs them end to end on all prompts.
    """
    start = [replace(point, policy=tuner.tuned(point.method, point.target)) for point in points]
    tuner.forget()
    said = foretell(start)
    aims = {place: _corrected(point.target, point.target, said[place]) for place, point in enumerate(points)}
    best = list(points)
    for _ in range(ROUNDS):
        tried = []
        for place, aim in aims.items():
            near, point = start[place].policy, points[place]
            policy = near if aim == point.target else tuner.tuned(point.method, aim, near)
            tried.append(replace(point, policy=policy))
        tuner.forget()
        again: dict[int, float] = {}
        for place, point, density in zip(list(aims), tried, measure(tried), strict=True):
            known, found = best[place], replace(point, density=density)
            if np.isnan(known.density) or abs(density - point.target) < abs(known.density - point.target):
                best[place] = found
            stuck = found.policy == known.policy and not np.isnan(known.density)
            if not found.reached and not stuck:
                again[place] = _corrected(aims[place], point.target, density)
        aims = again
        if not aims:
            break
    return best


def _corrected(aim: float, target: float, density: float) -> float:
    """Return the aim that would have met the target; the aim itself where it nearly did."""
    if abs(density - target) <= CLOSE / 4 * target or density <= 0:
        return aim
    return min(aim * target / density, 1.0)
