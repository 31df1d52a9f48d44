"""What is left of a head's role: its score under the policy ÷ its score under the base, on the same runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sparselens.analyses.fidelity.interval import Numbers, means, ratios
from sparselens.analyses.fidelity.needle import Needle
from sparselens.analyses.fidelity.pair import Pair
from sparselens.analyses.fidelity.table import TASK, Block, number_block
from sparselens.analyses.roles.retrieval import ROWS, Answered, outcome

LEAST = 0.1
"""Heads with a larger score under the base are asked what they retain (Wu et al. call them retrieval heads)."""
RETAINED = ("retrieval", "retrieval_find", "retrieval_copy")

_SAID = f"heads with more than {LEAST:g} under the base"
DEFINITIONS = {
    **{
        f"retained_{name}": f"`{name}` under the policy ÷ under the base, on the answer that the base produced; ratio "
        f"of means over answered runs, {_SAID}"
        for name in RETAINED
    },
    **{f"{name}_base": f"`{name}` under the base on these runs, {_SAID}" for name in RETAINED},
    "needle_kept": "share of the answer's place in the needle that the policy kept at the steps that produce the "
    "answer, heads with a retained_retrieval",
    "needle_mass": "attention under the policy to the answer's place in the needle at these steps",
    "needle_mass_base": "the same under the base",
    "sink_fallback": "of the runs in which the head's most read key at the step that produces the answer's first token "
    "is not the first token under the base: share in which it is under the policy",
}
"""Scores of heads; in `evals` they are over all these heads together."""


def needle_blocks(
    pair: Pair, units: Sequence[tuple[Needle, Mapping[str, Any]]], heads: int, prompt_set: str
) -> tuple[list[Block], dict[str, int]]:
    """Return `head_scores` and `evals` of the needle runs that the base answered, and how many these are.

    `units`: the prompts with their numbers (see `needle_numbers`); those whose answer does not stand in the needle are
    left out.
    """
    runs = [
        (Answered(each.prompt, each.place, tuple(unit["produced"].tolist())), unit)
        for each, unit in units
        if each.place is not None
    ]
    counts = outcome([run for run, _ in runs])
    answered = [(run, unit) for run, unit in runs if run.counts]
    if not answered:
        return [], counts
    params = pair.params | counts | {"least": LEAST}
    blocks: list[Block] = []
    for name in RETAINED:
        taken = [(run, unit) for run, unit in answered if not np.isnan(unit[f"base {name}"]).any()]
        if taken:
            about = {"prompt_set": prompt_set, "rows": ROWS.get(name, "generated")}
            blocks += _retained(name, taken, heads, params, about)
    return blocks, counts


def _retained(
    name: str,
    taken: Sequence[tuple[Answered, Mapping[str, Any]]],
    heads: int,
    params: Mapping[str, Any],
    about: Mapping[str, Any],
) -> list[Block]:
    """Return the blocks of one score; with `retrieval` come coverage, mass and the fall back to the first token."""
    clusters = [run.prompt.group or run.prompt.id for run, _ in taken]
    base, run = (np.stack([unit[f"{side} {name}"] for _, unit in taken]) for side in ("base", "run"))
    chosen = base.mean(0) > LEAST
    evals = [("retrieval_heads", _count(int(chosen.sum()), clusters))] if name == "retrieval" else []
    scores: dict[str, Numbers] = {}
    if chosen.any():
        scores = {f"retained_{name}": ratios(run, base, clusters), f"{name}_base": means(base, clusters)}
        after, before = (each[:, chosen].sum(1, keepdims=True) for each in (run, base))
        evals.append((f"retained_{name}", ratios(after, before, clusters)))
        if name == "retrieval":
            for metric, values in _beside(taken).items():
                scores[metric] = means(values, clusters)
                evals.append((metric, means(_mean(values[:, chosen]), clusters)))
    blocks: list[Block] = []
    for metric, numbers in scores.items():
        said = {
            "metric": metric,
            "definition": DEFINITIONS[metric],
            "params": json.dumps(params, sort_keys=True),
        }
        only = replace(numbers, value=np.where(chosen, numbers.value, np.nan))
        blocks += number_block(only, heads, {**about, **said})
    return blocks + [("evals", {"metric": metric, "task": TASK, **each.columns()}) for metric, each in evals]


def _beside(taken: Sequence[tuple[Answered, Mapping[str, Any]]]) -> dict[str, Any]:
    """Return coverage, masses and the fall back to the first token, `[runs, layers · heads]`."""

    def stacked(name: str) -> Any:
        return np.stack([unit[name] for _, unit in taken]).astype(float)

    before, after = stacked("base strongest"), stacked("run strongest")
    return {
        "needle_kept": stacked("run needle_kept"),
        "needle_mass": stacked("run needle_mass"),
        "needle_mass_base": stacked("base needle_mass"),
        "sink_fallback": np.where(before > 0, after == 0, np.nan),
    }


def _mean(values: Any) -> Any:
    """Return the mean of each row over the columns that it has: `[rows, 1]`, NaN where it has none."""
    there = ~np.isnan(values)
    count = there.sum(1, keepdims=True)
    total = np.where(there, values, 0.0).sum(1, keepdims=True)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _count(value: int, clusters: Sequence[str]) -> Numbers:
    """Return a plain number over runs, without an interval."""
    nothing = np.full(1, np.nan)
    return Numbers(
        np.full(1, float(value)), nothing, nothing, np.full(1, len(clusters)), np.full(1, len(set(clusters)))
    )
