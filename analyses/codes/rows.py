"""Scores of heads and areas under the ROC curve as rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparselens.analyses.codes.plan import Codes
from sparselens.analyses.codes.score import area, rank_correlation, softmax, wins
from sparselens.analyses.interval import Interval
from sparselens.analyses.measured import Measured, measured

TASK = "codes"
LEARNED = ("code_unique", "code_share", "code_edges", "code_separation")
CONTROLS = ("direct_effect", "write_norm", "write_change", "depth", "random", "code_permuted")
Block = tuple[str, dict[str, Any]]

DEFINITIONS = {
    "code_unique": "codes that the head has on some positive prompt and on no negative one; mean over trials",
    "code_share": "code_unique ÷ the different codes that the head has at all; mean over trials",
    "code_edges": "how often the head stands in the first n²/2 places of the list of head pairs, by pairs of codes "
    "that occur together on some positive prompt and on no negative one; mean over trials",
    "code_separation": "total variation distance of the head's codes on positive and negative prompts; mean over "
    "trials",
    "code_weight": "softmax over heads of code_unique",
    "code_permuted": "code_unique with positive and negative swapped in each pair by a coin; mean over trials",
    "code_agreement": "share of positive prompts on which the head has the same code under the policy and the base; "
    "mean over trials",
    "code_unique_base": "code_unique under the base, with the same SAEs",
    "ablation_effect": "logit of the answer − mean of the foils: as it is − with the head alone cut (it writes its "
    "mean over corrupt prompts, position by position)",
    "direct_effect": "what the head writes at END along (answer − mean of foils) of the unembedding, the last norm's "
    "scale frozen",
    "write_norm": "‖what the head writes, as it is encoded (mean over tokens, or at END)‖ on positive prompts",
    "write_change": "‖difference of that between a positive prompt and its negative one‖, mean over pairs",
}


@dataclass(frozen=True, eq=False)
class Scored:
    """Everything that ranks heads.

    `scores [trials, heads]` by name, `over` what some of them are means of, `[prompts, heads]`, with the `clusters` of
    these prompts. `effect [heads]`: the mean effect of cutting each head.
    """

    scores: Mapping[str, Any]
    over: Mapping[str, tuple[Any, Sequence[str]]]
    effect: Any

    def ranking(self, name: str) -> Any:
        """Return what a score ranks heads by, `[trials, heads]`: direct effects by their size."""
        return np.abs(self.scores[name]) if name == "direct_effect" else self.scores[name]


def head_rows(found: Scored, chosen: Codes, n: int, layers: int) -> list[Block]:
    """Return the rows of `head_scores`; scores of codes are over `n` prompts and have no interval of their own."""
    params = {
        "policy": chosen.policy,
        "base": chosen.base,
        "rows": chosen.rows,
        "features": chosen.features,
        "examples": chosen.examples,
        "trials": chosen.trials,
        "steps": chosen.steps,
        "sparsity": chosen.sparsity,
        "seed": chosen.seed,
    }
    made = [
        measured(
            name,
            values,
            clusters,
            prompt_set=chosen.task,
            rows=_rows_of(name, chosen),
            definition=DEFINITIONS[name],
            params=params,
        )
        for name, (values, clusters) in found.over.items()
    ]
    means = {
        name: values.mean(0)
        for name, values in found.scores.items()
        if name in DEFINITIONS and name not in found.over
    }
    means["code_weight"] = softmax(means["code_unique"])
    for name, mean in means.items():
        rows, unknown = _rows_of(name, chosen), np.full(len(mean), np.nan)
        made.append(
            Measured(
                name,
                mean,
                unknown,
                unknown,
                n,
                n,
                chosen.task,
                rows,
                DEFINITIONS[name],
                params,
            )
        )
    return [("head_scores", each.columns(layers)) for each in made]


def _rows_of(name: str, chosen: Codes) -> str:
    at_end = chosen.rows == "end" or name in ("ablation_effect", "direct_effect")
    return "span:answer" if at_end else "all"


def areas(found: Scored, chosen: Codes) -> dict[str, Interval]:
    """Return the area under the ROC curve of every score, for each size of the circuit, and differences of controls.

    `…_top26`: the 26 heads of largest |effect| are those that matter. `auc_A_minus_B`: paired by head. Heads without
    any effect do not matter; where none has one there is no area (NaN).
    """
    size = np.abs(found.effect)
    made: dict[str, Interval] = {}
    for count in chosen.circuit:
        matter: np.ndarray = np.zeros(len(size), bool)
        matter[np.argsort(-size, kind="stable")[: min(count, len(size) - 1)]] = True
        matter &= size > 0
        won = {name: wins(found.ranking(name), matter) for name in (*LEARNED, *CONTROLS)}
        made |= {f"auc_{name}_top{count}": area(each) for name, each in won.items()}
        for control in CONTROLS:
            made[f"auc_code_unique_minus_{control}_top{count}"] = area(won["code_unique"] - won[control])
    n = len(size)
    for name in (*LEARNED, *CONTROLS):
        rho = rank_correlation(found.ranking(name), size)
        made[f"spearman_{name}"] = Interval(rho, float("nan"), float("nan"), n, n)
    return made


def eval_rows(found: Mapping[str, Interval]) -> Block:
    """Return the rows of `evals`."""
    columns: dict[str, Any] = {
        "metric": list(found),
        "value": [each.mean for each in found.values()],
        "n": [each.n for each in found.values()],
        "n_clusters": [each.n_clusters for each in found.values()],
        "ci_low": [each.low for each in found.values()],
        "ci_high": [each.high for each in found.values()],
    }
    return "evals", {"task": TASK, **columns}
