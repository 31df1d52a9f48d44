"""Interventions on a run as a report reads them: which heads, how many, what came of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparselens.analyses.interval import Interval
from sparselens.analyses.report.data import Evidence
from sparselens.analyses.report.fidelity import stored

RESTORES = ("run_dense", "patch_pattern", "patch_z")
ABLATIONS = ("zero", "mean", "uniform")
RANDOM = "random"
PART = 10
"""The sentence at the top takes the largest set of at most one head in so many."""


@dataclass(frozen=True)
class Trial:
    """One set of heads that was given back or cut: its numbers by metric, and what they are over.

    `order_by`: the ranking that chose it, `random` for the mean of `n_draws` random sets that have as many heads in
    each layer as the set that the ranking `matched` chose; empty where no head was chosen.
    """

    kind: str
    order_by: str
    matched: str
    n_heads: int
    heads: tuple[str, ...]
    n_draws: int
    values: dict[str, Interval]


@dataclass(frozen=True)
class Study:
    """One analysis of one run: its trials in order, the heads that each fold chose, what was asked, what it noted."""

    analysis: str
    args: dict[str, Any]
    extra: dict[str, Any]
    prompt_set: str
    trials: tuple[Trial, ...]
    folds: dict[tuple[str, str, int], tuple[tuple[str, ...], ...]]

    def control(self, kind: str) -> Trial | None:
        """Return the trial of a kind that is no intervention on heads: `none`, `base`."""
        return next((trial for trial in self.trials if trial.kind == kind), None)

    @property
    def gap(self) -> Interval | None:
        """The loss of the run − that of its base, where the analysis stored it."""
        none = self.control("none")
        return None if none is None else none.values.get("gap")

    @property
    def told(self) -> bool:
        """Whether the gap can be told from 0, so that shares of it mean something."""
        return self.gap is None or (self.gap.mean > 0 and not self.gap.low <= 0)


def studies(evidence: Evidence, run_id: str, kinds: Sequence[str]) -> list[Study]:
    """Return the analyses that intervened for a run in one of these ways, oldest first.

    Heads are given back in the run itself; they are cut in the base, those that matter under the run's policy.
    """
    rows = evidence.interventions.get(run_id, [])
    found = []
    for analysis_id in dict.fromkeys(row["analysis_id"] for row in rows):
        own = [row for row in rows if row["analysis_id"] == analysis_id]
        if not any(row["kind"] in kinds for row in own):
            continue
        found.append(
            Study(
                own[0]["analysis"],
                json.loads(own[0]["args"] or "{}"),
                json.loads(own[0]["extra"] or "{}"),
                next((row["prompt_set"] for row in own if row["prompt_set"]), ""),
                _trials([row for row in own if row["fold"] is None]),
                _by_fold([row for row in own if row["fold"] is not None and row["kind"] in kinds]),
            )
        )
    return found


def _trials(rows: Sequence[dict[str, Any]]) -> tuple[Trial, ...]:
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        key = (row["trial"], row["kind"], row["order_by"], row["matched"], row["n_heads"])
        found.setdefault(key, []).append(row)
    return tuple(
        Trial(
            own[0]["kind"],
            own[0]["order_by"] or "",
            own[0]["matched"] or "",
            own[0]["n_heads"],
            tuple(own[0]["heads"] or ()),
            own[0]["n_draws"],
            {row["metric"]: stored(row) for row in own if row["value"] is not None},
        )
        for own in found.values()
    )


def _by_fold(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str, int], tuple[tuple[str, ...], ...]]:
    """Return the heads that each fold chose, by kind, order and number."""
    found: dict[tuple[str, str, int], dict[int, tuple[str, ...]]] = {}
    for row in rows:
        if row["heads"]:
            key = (row["kind"], row["order_by"] or "", row["n_heads"])
            found.setdefault(key, {})[row["fold"]] = tuple(row["heads"])
    return {key: tuple(folds.values()) for key, folds in found.items()}


def headline(evidence: Evidence, run_id: str) -> tuple[Trial, Trial | None] | None:
    """Return the restore for the top sentence and as many random heads: by write_error, the largest small set.

    None where nothing was given back, or the gap cannot be told from 0.
    """
    n_layers, n_heads = evidence.size
    asked = [study for study in studies(evidence, run_id, RESTORES) if study.told]
    for kind in RESTORES:
        for study in reversed(asked):
            ranked = [
                trial
                for trial in study.trials
                if trial.kind == kind and trial.order_by != RANDOM and "gap_closed" in trial.values
            ]
            ranked = [trial for trial in ranked if trial.order_by == "write_error"] or ranked
            chosen = small(ranked, n_layers * n_heads)
            if chosen is not None:
                return chosen, random_of(study, chosen)
    return None


def random_of(study: Study, trial: Trial) -> Trial | None:
    """Return the mean over random sets of as many heads, of the same layers where there are such."""
    found = [
        each
        for each in study.trials
        if (each.kind, each.order_by, each.n_heads) == (trial.kind, RANDOM, trial.n_heads)
    ]
    return next((each for each in found if each.matched == trial.order_by), found[0] if found else None)


def small(trials: Sequence[Trial], n_heads: int) -> Trial | None:
    """Return the largest set of at most one head in `PART`, else the smallest there is."""
    few = [trial for trial in trials if trial.n_heads * PART <= n_heads]
    if few:
        return max(few, key=lambda trial: trial.n_heads)
    return min(trials, key=lambda trial: trial.n_heads, default=None)
