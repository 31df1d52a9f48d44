"""Running a test of cause: rankings on one half, trials on the other, every number kept as it is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparselens.analyses.cause.plan import (
    GIVEN,
    Cause,
    Fold,
    Trial,
    folds,
    given,
    names_of,
    planned,
    ranked,
    sets_of,
)
from sparselens.analyses.cause.ranking import ranking_numbers
from sparselens.analyses.ledger import Ledger
from sparselens.analyses.stage import Stage
from sparselens.kernels.call import AttentionCall
from sparselens.kernels.head import Head
from sparselens.kernels.kernel import Attended, Kernel
from sparselens.kernels.kernel import kernel as kernel_named
from sparselens.kernels.policy import Policy
from sparselens.kernels.policy import parse as parse_policy
from sparselens.kernels.selection import Selection
from sparselens.kernels.statistics import NOTHING, Want
from sparselens.workbench.intervention import RESTORES, Rows, Snapshot, intervention
from sparselens.workbench.progress import Progress
from sparselens.workbench.prompt import Prompt
from sparselens.workbench.session import Session
from sparselens.workbench.widen import density_of, widened

MEAN_FROM = 8
"""Means of heads are over rows from here on: the first rows have hardly a key to read."""


@dataclass(frozen=True, eq=False)
class Tested:
    """A fold that has run: mean ranking scores, the heads and the outcomes `[prompts, 3]` of every trial."""

    fold: Fold
    scores: Mapping[str, Any]
    n_answered: int
    heads: Mapping[Trial, tuple[Head, ...]]
    outcomes: Mapping[Trial, Any]
    density: Mapping[Trial, float]
    widened: Mapping[int, Policy]


@dataclass(eq=False)
class Study:
    """A test of cause on its way. `under` is the policy that is intervened on: the sparse one, or its base."""

    session: Session
    chosen: Cause
    under: Policy
    ledger: Ledger
    bar: Progress
    policy: Policy = field(init=False)
    base: Policy = field(init=False)
    kernel: Kernel = field(init=False)

    def __post_init__(self) -> None:
        self.policy, self.base = parse_policy(self.chosen.policy), parse_policy(self.chosen.base)
        self.kernel = kernel_named(self.chosen.kernel)

    @property
    def restores(self) -> bool:
        """Whether heads are given back, rather than taken away."""
        return self.chosen.kind in RESTORES

    def run(self) -> list[Tested]:
        """Return both folds, tested."""
        return [self._fold(fold) for fold in folds(self.session, self.chosen)]

    def _fold(self, fold: Fold) -> Tested:
        scores, answered = self._ranking(fold.ranking) if self.chosen.ranks else ({}, 0)
        heads = self.session.n_heads
        order = ranked(scores, heads)
        if self.chosen.heads:
            order[GIVEN] = given(self.session, self.chosen)
        trials = planned(self.chosen)
        size = (self.session.n_layers, heads)
        sets = sets_of(trials, order, size, self.chosen.seed, fold.number)
        density, wider = self._densities(fold, sets) if self.restores else ({}, {})
        for count in wider:
            sets[Trial("policy", count)] = ()
        means = self._means(fold.ranking) if self.chosen.kind == "mean" else None
        made: dict[Trial, list[Any]] = {trial: [] for trial in sets}
        for prompt in fold.tested:
            self.bar.says(f"fold {fold.number} · {prompt.name}")
            for trial, outcome in self._prompt(prompt, sets, wider, means).items():
                made[trial].append(outcome)
            self.bar.finished_prompt()
        outcomes = {trial: np.stack(found) for trial, found in made.items()}
        return Tested(fold, scores, answered, sets, outcomes, density, wider)

    def _ranking(self, prompts: Sequence[Prompt]) -> tuple[dict[str, Any], int]:
        """Return the mean scores by order, and how many prompts the base answered (None ranked by retrieval: 0)."""
        made = []
        for prompt in prompts:
            self.bar.says(f"ranking · {prompt.name}")
            key = f"ranking {self.base} {self.policy} {self.chosen.ranks} {prompt.id}"
            made.append(self.ledger.once(key, lambda prompt=prompt: self._rank(prompt)))  # type: ignore[misc]
            self.bar.advance(2 * len(prompt))
            self.bar.finished_prompt()
        means = {}
        for order in self.chosen.ranks:
            counted = [each for each in made if order != "retrieval" or bool(each["answered"])]
            if not counted:
                raise ValueError(
                    f"{self.session.provenance.name} answers none of the {len(made)} ranking prompts: heads cannot be"
                    " ranked by retrieval; leave it out of orders, or give prompts that the model can answer"
                )
            means[order] = np.mean([each[order] for each in counted], axis=0)
        return means, sum(bool(each.get("answered", False)) for each in made)

    def _rank(self, prompt: Prompt) -> dict[str, Any]:
        return ranking_numbers(self.session, prompt, self.base, self.policy, self.kernel, self.chosen.ranks)

    def _densities(
        self, fold: Fold, sets: Mapping[Trial, tuple[Head, ...]]
    ) -> tuple[dict[Trial, float], dict[int, Policy]]:
        """Return the density of the run and of every ranked set given back, and a wider policy for each count.

        On one prompt of the fold: prompts of a set have the same length unless the user says otherwise. Only heads
        that run dense cost density.
        """
        sample = fold.tested[:1]
        plain = density_of(self.session, self.policy, self.kernel, sample)
        found = {
            Trial("none"): plain,
            Trial("base"): density_of(self.session, self.base, self.kernel, sample),
        }
        wider: dict[int, Policy] = {}
        if self.chosen.kind != "run_dense" or self.chosen.phase != "both":
            return found, wider
        for trial, heads in sets.items():
            if heads and trial.draw is None:
                found[trial] = density_of(self.session, _with_heads(self.policy, heads), self.kernel, sample)
        for count in self.chosen.counts if self.policy.budget else ():
            wanted = found[Trial(self.chosen.kind, count, (*self.chosen.ranks, GIVEN)[0])]
            wider[count], reached = widened(self.session, self.policy, self.kernel, sample, wanted)
            found[Trial("policy", count)] = reached
        return found, wider

    def _prompt(
        self,
        prompt: Prompt,
        sets: Mapping[Trial, tuple[Head, ...]],
        wider: Mapping[int, Policy],
        means: Tensor | None,
    ) -> dict[Trial, Any]:
        """Return the outcome of every trial on a prompt; equal sets run once."""
        stage = Stage(self.session, prompt, self.under, self.kernel)
        rows = Rows.of(prompt, self.chosen.phase)
        base = self._snapshot(prompt) if self.chosen.kind in ("patch_pattern", "patch_z") else None
        found = {}
        for trial, heads in sets.items():
            if trial.kind in ("base", "policy"):
                other = self.base if trial.kind == "base" else wider[trial.n_heads]
                whole = Stage(self.session, prompt, other, self.kernel)
                found[trial] = self._kept(f"plain {other}", prompt, whole.plain)
            elif trial.kind == "none":
                found[trial] = self._kept(f"plain {self.under}", prompt, stage.plain)
            else:
                names = " ".join(names_of(sorted(heads)))
                key = f"{trial.kind} {self.chosen.phase} {self.under} from {self.base}: {names}"
                if means is not None:
                    key += f" means {float(means.double().sum()):.9e}"
                edit = intervention(trial.kind, heads, rows, self.kernel, base=base, means=means)
                first = min(layer for layer, _ in heads)
                found[trial] = self._kept(key, prompt, partial(stage.tried, edit, first))
        return found

    def _kept(self, key: str, prompt: Prompt, compute: Callable[[], Any]) -> Any:
        """Return an outcome, computed or kept from before."""
        found = self.ledger.once(f"{key} on {prompt.id}", lambda: {"outcome": compute()})["outcome"]
        self.bar.advance(len(prompt))
        return found

    def _snapshot(self, prompt: Prompt) -> Snapshot:
        """Return the base's run of a prompt, all layers."""
        base = Snapshot(self.base, frozenset(range(self.session.n_layers)))
        Stage(self.session, prompt, self.base, self.kernel).plain(observers=[base])
        return base

    def _means(self, prompts: Sequence[Prompt]) -> Tensor:
        """Return what each head hands on on average over the ranking prompts, under the policy that is cut."""
        total = torch.zeros(())
        for prompt in prompts:
            key = f"means {self.under} {prompt.id}"
            found = self.ledger.once(key, lambda prompt=prompt: {"mean": self._mean(prompt)})  # type: ignore[misc]
            total = total + torch.from_numpy(found["mean"])
        return total / len(prompts)

    def _mean(self, prompt: Prompt) -> Any:
        watch = Means()
        Stage(self.session, prompt, self.under, self.kernel).plain(observers=[watch])
        return torch.stack([watch.layers[layer] for layer in sorted(watch.layers)]).numpy()


@dataclass(eq=False)
class Means:
    """An observer: the mean of what each head hands on, by layer `[heads, head_dim]`, rows from `MEAN_FROM` on."""

    layers: dict[int, Tensor] = field(default_factory=dict)

    def want(self, call: AttentionCall) -> Want:
        """Ask for no statistics."""
        del call
        return NOTHING

    def saw(self, call: AttentionCall, selection: Selection, attended: Attended) -> None:
        """Keep the layer's means."""
        del selection
        self.layers[call.layer] = attended.output[0, :, MEAN_FROM:].float().mean(1).cpu()


def _with_heads(policy: Policy, heads: Sequence[Head]) -> Policy:
    """Return the policy with these heads dense."""
    return parse_policy(f"per_head(default={policy},full=[{','.join(names_of(sorted(heads)))}])")
