"""Running a sweep: every method tuned to every density, measured, and set beside the references of its shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from sparselens.analyses.ledger import Ledger
from sparselens.analyses.sweep.base import Base, Stand
from sparselens.analyses.sweep.forward import as_numbers, forward_numbers, losses
from sparselens.analyses.sweep.plan import RANDOM, Point, Sweep, read_prompts, references_of, spread
from sparselens.analyses.sweep.recall import recalls
from sparselens.analyses.sweep.tune import Tuner, local_density, settled
from sparselens.kernels.kernel import kernel as kernel_named
from sparselens.kernels.policy import Policy
from sparselens.kernels.policy import parse as parse_policy
from sparselens.workbench.progress import Progress
from sparselens.workbench.prompt import Prompt
from sparselens.workbench.session import Session

Numbers = dict[str, float]


@dataclass(frozen=True, eq=False)
class Swept:
    """A sweep that has run. `numbers[point][prompt]`: by metric, those of a reference as `METRIC ROLE`."""

    prompts: list[Prompt]
    points: list[Point]
    numbers: list[list[Numbers]]
    base: list[Numbers]
    units: list[str]


@dataclass(eq=False)
class Study:
    """A sweep on its way."""

    session: Session
    chosen: Sweep
    ledger: Ledger
    bar: Progress
    prompts: list[Prompt] = field(init=False)
    stand: Stand = field(init=False)
    _base: Base | None = None
    _beside: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        chosen = self.chosen
        self.prompts = read_prompts(self.session, chosen)
        base, kernel = parse_policy(chosen.base), kernel_named(chosen.kernel)
        self.stand = Stand.of(self.session, base, kernel, chosen.decoding)

    def run(self) -> Swept:
        """Tune, measure, compare."""
        chosen = self.chosen
        planned = [
            Point(method, density, parse_policy(method))
            for method in chosen.policies
            for density in chosen.densities
        ]
        tuner = Tuner(self.stand, self.prompts, self.ledger)
        self._beside = {prompt.id for prompt in spread(self.prompts, chosen.references)}
        points = settled(planned, tuner, partial(self._foretold, tuner.some), self._densities)
        numbers: list[list[Numbers]] = [[] for _ in points]
        base = []
        units = [""] * len(points)
        for prompt in self.prompts:
            base.append(self._plain(prompt))
            for place, (found, unit) in enumerate(self._recalls(points, prompt)):
                numbers[place].append(found | self._forward(points[place].policy, prompt))
                units[place] = unit
            if prompt.id in self._beside:
                for place, point in enumerate(points):
                    numbers[place][-1] |= self._references(point, prompt)
            self.bar.finished_prompt()
        return Swept(self.prompts, points, numbers, base, units)

    def _densities(self, points: Sequence[Point]) -> list[float]:
        """Return the mean density of every point, run end to end."""
        found: list[list[float]] = [[] for _ in points]
        for prompt in self.prompts:
            for place, point in enumerate(points):
                self.bar.says(f"{point.target:g} · {point.policy} · {prompt.name}")
                found[place].append(self._forward(point.policy, prompt)["density"])
        return [float(np.mean(each)) for each in found]

    def _foretold(self, some: Sequence[Prompt], points: Sequence[Point]) -> list[float]:
        """Return the densities that points will have: those on the base's tensors, times what runs of some change."""
        moving = [place for place, point in enumerate(points) if point.policy.reads_tensors]
        local: dict[int, list[float]] = {place: [] for place in moving}
        ratios: dict[int, list[float]] = {place: [] for place in moving}
        for prompt in self.prompts if moving else ():
            for place in moving:
                policy = points[place].policy
                self.bar.says(f"density · {policy} · {prompt.name}")
                local[place].append(self._local(policy, prompt))
                if prompt in some:
                    ratios[place].append(self._forward(policy, prompt)["density"] / local[place][-1])
        foretold = {place: float(np.mean(local[place]) * np.mean(ratios[place])) for place in moving}
        return [foretold.get(place, point.target) for place, point in enumerate(points)]

    def _local(self, policy: Policy, prompt: Prompt) -> float:
        """Return a policy's density on the base's queries and keys."""

        def compute() -> Numbers:
            return {"density": local_density(self._at(prompt), policy)}

        return self._once(f"local {policy} {policy.hash}", prompt, compute)["density"]

    def _at(self, prompt: Prompt) -> Base:
        """Return the prompt under the base; the last one is kept."""
        if self._base is None or self._base.prompt.id != prompt.id:
            self._base = None
            self._base = Base.of(self.stand, prompt)
        return self._base

    def _once(self, key: str, prompt: Prompt, compute: Callable[[], Numbers]) -> Numbers:
        """Return numbers of a prompt, kept or computed now."""
        decode = "" if self.chosen.decoding is None else f" decoded {self.chosen.decoding}"
        about = f"against {self.stand.base} by {self.chosen.kernel}{decode} on {prompt.id}"
        return as_numbers(self.ledger.once(f"{key} {about}", compute))

    def _plain(self, prompt: Prompt) -> Numbers:
        """Return the base's own losses."""

        def compute() -> Numbers:
            base = self._at(prompt)
            found = losses(base, None, every_token=True)
            return {name: found[name] for name in ("nll", "answer_nll", "answer_forced") if name in found}

        return self._once("base", prompt, compute)

    def _forward(self, policy: Policy, prompt: Prompt, *, reference: bool = False) -> Numbers:
        """Return the end-to-end numbers of a policy.

        Losses of every token are of prompts without an answer, and of methods where references run beside them.
        """
        whole = not prompt.answer_ids or (prompt.id in self._beside and not reference)

        def compute() -> Numbers:
            self.bar.advance(len(prompt))
            return forward_numbers(self._at(prompt), policy, every_token=whole, tiles=not reference)

        return self._once(f"forward {policy} {policy.hash} {whole} {reference}", prompt, compute)

    def _recalls(self, points: Sequence[Point], prompt: Prompt) -> list[tuple[Numbers, str]]:
        """Return the recalled mass of every point and its references, and the units that these choose."""
        seeds = self.chosen.seeds
        made: dict[Policy, dict[str, Any]] = {}

        def compute(policy: Policy) -> dict[str, Any]:
            if policy not in made:  # all at once: they read the same weights
                self.bar.says(f"recalled mass · {prompt.name}")
                policies = list(dict.fromkeys(point.policy for point in points))
                made.update(zip(policies, recalls(self._at(prompt), policies, seeds), strict=True))
            return made[policy]

        found = []
        for point in points:
            key = f"recall {seeds} {point.policy} {point.policy.hash} against {self.stand.base}"
            key += f" decode {self.chosen.decoding} on {prompt.id}"
            numbers = dict(self.ledger.once(key, lambda point=point: compute(point.policy)))  # type: ignore[misc]
            unit = str(numbers.pop("unit"))
            found.append((as_numbers(numbers), unit))
        return found

    def _references(self, point: Point, prompt: Prompt) -> Numbers:
        """Return the end-to-end numbers of the references, as `METRIC ROLE`."""
        found: Numbers = {}
        for role, policy in references_of(point.policy, self.chosen.seeds).items():
            self.bar.says(f"{role} of {point.policy} · {prompt.name}")
            numbers = self._forward(policy, prompt, reference=True)
            found |= {f"{metric} {role}": value for metric, value in numbers.items()}
        return found


def seeds_of(metric: str, seeds: int) -> list[str]:
    """Return the names of a metric's numbers under the random selections."""
    return [f"{metric} {RANDOM}_{seed}" for seed in range(seeds)]
