"""Whether the heads of largest direct effect matter: cut together, against random heads of the same layers.

Groups are split into two halves; the heads that are cut on one half were chosen on the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparselens.analyses.cause.plan import drawn, names_of
from sparselens.analyses.circuit.patch import Pair, Run
from sparselens.analyses.interval import Interval, clustered_mean
from sparselens.analyses.movers.plan import Case, Movers
from sparselens.kernels.head import Head
from sparselens.workbench.session import Session

DEFINITIONS = {
    "logit_diff": "logit of the answer's first token − mean logit of the foils, at the row that predicts it",
    "logit_diff_fall": "logit_diff as it is − with these heads cut together (each writes its mean over corrupt "
    "prompts, position by position), mean over prompts",
    "logit_diff_fall_over_random": "logit_diff_fall − its mean over random heads, as many in each layer, on the same "
    "prompts",
}


@dataclass(frozen=True, eq=False)
class Fold:
    """One half of the cases, the heads chosen on the other half, and random ones in their layers."""

    number: int
    tested: tuple[int, ...]
    heads: tuple[Head, ...]
    random: tuple[tuple[Head, ...], ...]


def folds_of(groups: Sequence[str], direct: Any, shape: tuple[int, int], chosen: Movers) -> list[Fold]:
    """Return both halves; `direct [cases, layers · heads]` chooses, `shape` is layers and heads a layer."""
    names = list(dict.fromkeys(groups))
    found = []
    for number in range(2):
        mine = set(names[number::2])
        tested = tuple(place for place, group in enumerate(groups) if group in mine)
        others = [place for place in range(len(groups)) if place not in set(tested)]
        order = np.argsort(-direct[others].mean(0), kind="stable")[: chosen.heads]
        heads = tuple(divmod(int(at), shape[1]) for at in order)
        draws = tuple(
            tuple(drawn(heads, heads, shape, f"movers {chosen.seed} {number} {draw}"))
            for draw in range(chosen.draws)
        )
        found.append(Fold(number, tested, heads, draws))
    return found


def cut_case(session: Session, case: Case, fold: Fold, chosen: Movers) -> dict[str, Any]:
    """Return the logit difference of a case as it is, without the chosen heads, and without each random set."""
    run = Run(session, Pair(case.prompt, case.references, case.metric), chosen.policy, chosen.kernel)
    values = [run.full(), run.without_heads(fold.heads), *map(run.without_heads, fold.random)]
    return {"values": np.array(values)}


@dataclass(frozen=True, eq=False)
class Cut:
    """What became of the cases: `values [cases, 2 + draws]` in the order of `cut_case`, and their groups."""

    values: Any
    groups: Sequence[str]

    def interval(self, values: Any) -> Interval:
        """Return the mean over cases with its interval over groups."""
        return clustered_mean(values, self.groups)

    @property
    def intact(self) -> Interval:
        """The logit difference as it is."""
        return self.interval(self.values[:, 0])

    @property
    def fall(self) -> Interval:
        """By how much it falls without the chosen heads."""
        return self.interval(self.values[:, 0] - self.values[:, 1])

    @property
    def random_fall(self) -> Interval:
        """By how much it falls without random heads, mean over the draws."""
        return self.interval(self.values[:, 0] - self.values[:, 2:].mean(1))

    @property
    def over_random(self) -> Interval:
        """The difference, paired by prompt."""
        return self.interval(self.values[:, 2:].mean(1) - self.values[:, 1])


def intervention_rows(folds: Sequence[Fold], cuts: Sequence[Cut], chosen: Movers) -> dict[str, list[Any]]:
    """Return the rows of `interventions`: each half, and both together (`fold` None)."""
    whole = Cut(np.concatenate([cut.values for cut in cuts]), [group for cut in cuts for group in cut.groups])
    rows: list[dict[str, Any]] = []
    for number, cut, heads in (
        *((fold.number, cut, names_of(fold.heads)) for fold, cut in zip(folds, cuts, strict=True)),
        (None, whole, []),
    ):
        rows += [{"fold": number, "prompt_set": chosen.prompts, **row} for row in _rows(cut, heads, chosen)]
    return {name: [row[name] for row in rows] for name in rows[0]}


def _rows(cut: Cut, heads: list[str], chosen: Movers) -> list[dict[str, Any]]:
    """Return the rows of one half or of both."""
    none = {"trial": 0, "kind": "none", "heads": [], "n_heads": 0, "order_by": None, "matched": None}
    mine = {"trial": 1, "kind": "mean", "heads": heads, "n_heads": chosen.heads, "order_by": "direct"} | {
        "matched": None
    }
    others = {**mine, "trial": 2, "heads": [], "order_by": "random", "matched": "direct"}
    cells: list[tuple[dict[str, Any], str, Interval]] = [
        (none, "logit_diff", cut.intact),
        (mine, "logit_diff", cut.interval(cut.values[:, 1])),
        (mine, "logit_diff_fall", cut.fall),
        (mine, "logit_diff_fall_over_random", cut.over_random),
        (others, "logit_diff", cut.interval(cut.values[:, 2:].mean(1))),
        (others, "logit_diff_fall", cut.random_fall),
    ]
    return [
        {
            **about,
            "draw": None,
            "phase": "both",
            "metric": metric,
            "value": found.mean,
            "n": found.n,
            "n_clusters": found.n_clusters,
            "ci_low": found.low,
            "ci_high": found.high,
            "definition": DEFINITIONS[metric],
        }
        for about, metric, found in cells
    ]


def cut_all(
    session: Session,
    used: Sequence[Case],
    folds: Sequence[Fold],
    chosen: Movers,
    once: Callable[[str, Case, Callable[[], dict[str, Any]]], dict[str, Any]],
) -> list[Cut]:
    """Run every case of both halves; `once` keeps the numbers of a case."""
    cuts = []
    for fold in folds:
        names = " ".join(names_of([head for heads in (fold.heads, *fold.random) for head in heads]))
        values = []
        for case in (used[at] for at in fold.tested):

            def compute(case: Case = case, fold: Fold = fold) -> dict[str, Any]:
                return cut_case(session, case, fold, chosen)

            values.append(once(f"cut {names}", case, compute)["values"])
        cuts.append(Cut(np.stack(values), [used[at].group for at in fold.tested]))
    return cuts
