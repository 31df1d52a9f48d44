"""From outcomes to rows: shares of the gap that sets of heads close, against random sets, with intervals.

Intervals are 95 % bootstraps over whole groups (needle families), paired by prompt: one draw counts the same prompts
for the run, its base, a ranked set and the random sets. For differences from random sets these are drawn as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparselens.analyses.cause.plan import Cause, Trial, cluster, names_of
from sparselens.analyses.cause.run import Tested
from sparselens.analyses.interval import DRAWS, bounds, resamples
from sparselens.analyses.stage import OUTCOMES

DEFINITIONS = {
    "answer_nll": "loss of the answer's tokens given the answer so far (nats a token), mean over prompts",
    "first_token": "share of prompts whose first answer token is the most probable one",
    "whole_answer": "share of prompts in which every answer token is the most probable one, teacher-forced",
    "gap": "answer_nll of the run − answer_nll of its base, mean over prompts",
    "gap_closed": "(answer_nll of the run − with these heads given back) ÷ (of the run − of its base), of means over "
    "prompts",
    "gap_closed_over_random": "gap_closed − its mean over random heads, as many in each layer, outside the ranked ones",
    "nll_rise": "answer_nll with these heads cut − without cutting them, mean over prompts",
    "nll_rise_over_random": "nll_rise − its mean over random heads, as many in each layer, outside the ranked ones",
    "density": "kept pairs ÷ allowed pairs, over all layers and heads",
}


@dataclass(frozen=True, eq=False)
class Panel:
    """Outcomes of some prompts: `values[trial] [prompts, 3]`, `times [DRAWS, prompts]`, the groups."""

    values: Mapping[Trial, Any]
    times: Any
    groups: Sequence[str]

    @classmethod
    def of(cls, parts: Sequence[Tested]) -> Panel:
        """Return the panel of one fold, or of several put together."""
        groups = [cluster(prompt) for part in parts for prompt in part.fold.tested]
        trials = [trial for trial in parts[0].outcomes if all(trial in part.outcomes for part in parts)]
        values = {trial: np.concatenate([part.outcomes[trial] for part in parts]) for trial in trials}
        return cls(values, resamples(groups), groups)

    def mean(self, trial: Trial, at: int = 0) -> tuple[float, Any]:
        """Return the mean of an outcome and that of every draw `[DRAWS]`."""
        values = self.values[trial][:, at]
        return float(values.mean()), (self.times @ values) / self.times.sum(1)

    def closed(self, trial: Trial) -> tuple[float, Any]:
        """Return the share of the gap between the run and its base that a trial closes, and its draws."""
        (run, runs), (base, bases), (now, nows) = (
            self.mean(each) for each in (Trial("none"), Trial("base"), trial)
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.divide(run - now, run - base)), (runs - nows) / (runs - bases)

    def rise(self, trial: Trial) -> tuple[float, Any]:
        """Return by how much the loss rises in a trial, and its draws."""
        (run, runs), (now, nows) = self.mean(Trial("none")), self.mean(trial)
        return now - run, nows - runs

    def random_of(self, trial: Trial) -> list[Trial]:
        """Return the random trials that match a ranked one."""
        return [
            each
            for each in self.values
            if (each.order_by, each.matched, each.n_heads) == ("random", trial.order_by, trial.n_heads)
        ]


def rows_of(parts: Sequence[Tested], chosen: Cause, *, restores: bool) -> list[dict[str, Any]]:
    """Return the rows of `interventions`: every fold by itself, and both together (`fold` None)."""
    made = []
    for fold, some in [*((part.fold.number, [part]) for part in parts), (None, list(parts))]:
        panel = Panel.of(some)
        for number, trial in enumerate(panel.values):
            about = _about(trial, number, fold, some, chosen)
            made += [about | row for row in _rows(panel, trial, some, restores=restores)]
        made += _random_means(panel, fold, chosen, restores=restores, number=len(panel.values))
    return made


def _about(
    trial: Trial, number: int, fold: int | None, parts: Sequence[Tested], chosen: Cause
) -> dict[str, Any]:
    """Return what every row of a trial says."""
    sets = [tuple(sorted(part.heads.get(trial, ()))) for part in parts]
    return {
        "trial": number,
        "fold": fold,
        "kind": trial.kind,
        "heads": names_of(parts[0].heads[trial]) if len(set(sets)) == 1 else [],
        "n_heads": trial.n_heads,
        "order_by": trial.order_by,
        "matched": trial.matched,
        "draw": trial.draw,
        "phase": chosen.phase,
        "prompt_set": chosen.prompts,
    }


def _rows(panel: Panel, trial: Trial, parts: Sequence[Tested], *, restores: bool) -> list[dict[str, Any]]:
    """Return the metrics of a trial."""
    found = {metric: panel.mean(trial, at) for at, metric in enumerate(OUTCOMES)}
    if trial.kind == "none" and restores:
        run, base = panel.mean(trial), panel.mean(Trial("base"))
        found["gap"] = run[0] - base[0], run[1] - base[1]
    if trial.kind not in ("none", "base"):
        metric, of = ("gap_closed", panel.closed) if restores else ("nll_rise", panel.rise)
        found[metric] = of(trial)
        others = panel.random_of(trial)
        if others and trial.order_by != "random":
            found[f"{metric}_over_random"] = _over_random(of(trial), [of(each) for each in others])
    made = [_row(panel, metric, *values) for metric, values in found.items()]
    densities = [part.density[trial] for part in parts if trial in part.density]
    if densities:
        nothing = np.full(DRAWS, np.nan)
        made.append(_row(panel, "density", float(np.mean(densities)), nothing))
    return made


def _over_random(mine: tuple[float, Any], others: Sequence[tuple[float, Any]]) -> tuple[float, Any]:
    """Return a trial's number minus the mean over random sets; the sets are drawn with the prompts."""
    values, draws = np.array([value for value, _ in others]), np.stack([draw for _, draw in others])
    chosen = np.random.default_rng(0).integers(0, len(others), (len(others), DRAWS))
    return float(mine[0] - values.mean()), mine[1] - draws[chosen, np.arange(DRAWS)].mean(0)


def _random_means(
    panel: Panel, fold: int | None, chosen: Cause, *, restores: bool, number: int
) -> list[dict[str, Any]]:
    """Return the mean over the random sets of each size and ranking: rows without a draw."""
    made = []
    some = {(each.kind, each.n_heads, each.matched) for each in panel.values if each.order_by == "random"}
    for kind, n_heads, matched in sorted(some, key=str):
        of_them = panel.random_of(Trial(kind, n_heads, matched))
        mean = Trial(kind, n_heads, "random", matched)
        found = {
            metric: _mean_of([panel.mean(each, at) for each in of_them]) for at, metric in enumerate(OUTCOMES)
        }
        metric, of = ("gap_closed", panel.closed) if restores else ("nll_rise", panel.rise)
        found[metric] = _mean_of([of(each) for each in of_them])
        about: dict[str, Any] = {
            "trial": number,
            "fold": fold,
            "kind": kind,
            "heads": [],
            "n_heads": n_heads,
            "order_by": "random",
            "matched": mean.matched,
            "draw": None,
            "phase": chosen.phase,
            "prompt_set": chosen.prompts,
        }
        made += [about | _row(panel, name, *values) for name, values in found.items()]
        number += 1
    return made


def _mean_of(others: Sequence[tuple[float, Any]]) -> tuple[float, Any]:
    """Return the mean over random sets, the sets drawn with the prompts."""
    value, draws = _over_random((0.0, np.zeros(DRAWS)), others)
    return 0.0 - value, 0.0 - draws


def _row(panel: Panel, metric: str, value: float, draws: Any) -> dict[str, Any]:
    """Return the columns of a metric."""
    low, high = bounds(draws)
    return {
        "metric": metric,
        "value": value,
        "n": len(panel.groups),
        "n_clusters": len(set(panel.groups)),
        "ci_low": low,
        "ci_high": high,
        "definition": DEFINITIONS[metric],
    }


def prompt_rows(parts: Sequence[Tested]) -> dict[str, list[Any]]:
    """Return the columns of `intervention_prompts`: every outcome of every trial on every prompt."""
    columns: dict[str, list[Any]] = {name: [] for name in ("trial", "fold", "prompt_id", "metric", "value")}
    for part in parts:
        for number, values in enumerate(part.outcomes.values()):
            for prompt, outcome in zip(part.fold.tested, values, strict=True):
                for metric, value in zip(OUTCOMES, outcome.tolist(), strict=True):
                    row = (number, part.fold.number, prompt.id, metric, value)
                    for name, cell in zip(columns, row, strict=True):
                        columns[name].append(cell)
    return columns


def table(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return rows as columns."""
    return {name: [row[name] for row in rows] for name in rows[0]}
