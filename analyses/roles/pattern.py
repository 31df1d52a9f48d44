"""Scores of what a head's pattern looks like: targets on repeats, sinks on windows, distances on texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparselens.analyses.measured import Measured, measured
from sparselens.analyses.pattern_scores import TARGETS
from sparselens.analyses.roles.ground import Ground
from sparselens.analyses.roles.plan import Material
from sparselens.analyses.roles.watch import FAR, SinkWatch, TargetWatch, TextWatch

DEFINITIONS = {
    "previous_token": "mean over rows q ≥ 1 of the attention to q − 1, on repeated random tokens, all gaps",
    "duplicate_token": "mean over second-half rows of the attention to the same token's earlier place, all gaps",
    "induction": "mean over second-half rows of the attention to the token after the same token's earlier place, "
    "all gaps",
    "sink_rate": "share of prose windows in which the first key holds more than epsilon of the attention of the "
    "queries that see it (Sink_1^ε, threshold per window, then the mean)",
    "sink_alpha": "mean over prose windows of the attention to the first key, over the queries that see it",
    "sink_rate_other": "share of prose windows in which some later key but the last 8 holds more than epsilon",
    "local_mass": f"mean attention to the last {FAR} keys, rows from {FAR} on",
    "global_mass": f"mean attention beyond the last {FAR} keys, the first token left out, rows from {FAR} on",
    "sink_mass": f"mean attention to the first token, rows from {FAR} on",
    "entropy_norm": f"mean entropy ÷ ln(kept keys), rows from {FAR} on",
    "distance": f"mean distance to the attended key in tokens, rows from {FAR} on",
}
ON_CODE = ("sink_mass", "local_mass", "entropy_norm")
"""Scores of texts that are measured on source code too: a head may be dormant on one of the two only."""


def on_repeats(ground: Ground) -> list[Measured]:
    """Return the three scores over all gaps, at each gap and at their worst gap, and what a policy could reach."""
    materials = ground.plan.repeats
    by_gap = [ground.watched(material, TargetWatch(), "targets") for material in materials]
    params = {**ground.conventions, "half": ground.chosen.half}
    gaps = [material.gap for material in materials]
    whole = Material(
        ", ".join(material.call for material in materials),
        [prompt for material in materials for prompt in material.prompts],
    )
    strata = [number for number, material in enumerate(materials) for _ in material.prompts]
    found = []
    for name in TARGETS:
        previous = name == "previous_token"
        rows = "all" if previous else "span:second"
        about = {**params, "gaps": gaps}
        each = 0 if previous else ground.chosen.half
        together = np.concatenate([numbers[name] for numbers in by_gap])
        found.append(_rows(name, together, whole, rows, DEFINITIONS[name], about, each=each, strata=strata))
        reachable = np.concatenate([numbers[f"{name}_reachable"] for numbers in by_gap])
        if reachable.min() < 1:
            definition = f"share of the rows of {name} whose target key the policy kept"
            reached = f"{name}_reachable"
            found.append(_rows(reached, reachable, whole, rows, definition, about, each=each, strata=strata))
        if not previous:
            single = _single(name, by_gap, materials, rows, params, each)
            found += [*single, _worst(f"{name}_min_gap", single, whole.call, about)]
    return found


def _single(
    name: str,
    by_gap: Sequence[Mapping[str, Any]],
    materials: Sequence[Material],
    rows: str,
    params: dict[str, Any],
    each: int,
) -> list[Measured]:
    """Return a score at every gap by itself."""
    return [
        _rows(
            f"{name}_gap{material.gap}",
            numbers[name],
            material,
            rows,
            DEFINITIONS[name].replace("all gaps", f"gap {material.gap}"),
            {**params, "gap": material.gap},
            each=each,
        )
        for numbers, material in zip(by_gap, materials, strict=True)
    ]


def _worst(metric: str, single: Sequence[Measured], calls: str, params: dict[str, Any]) -> Measured:
    """Return the smallest of the means at single gaps, of each head, with the interval of that mean."""
    means = np.stack([each.mean for each in single])
    at = means.argmin(0)[None]

    def taken(name: str) -> Any:
        return np.take_along_axis(np.stack([getattr(each, name) for each in single]), at, 0)[0]

    return Measured(
        metric,
        taken("mean"),
        taken("low"),
        taken("high"),
        single[0].n,
        single[0].n_clusters,
        calls,
        single[0].rows,
        f"smallest of {metric.removesuffix('_min_gap')} at single gaps; the interval is that of the mean at that gap",
        params,
    )


def on_windows(ground: Ground) -> list[Measured]:
    """Return the sink scores of windows of prose."""
    windows, epsilon = ground.plan.windows, ground.chosen.epsilon
    numbers = ground.watched(windows, SinkWatch(epsilon), f"sinks {epsilon}")
    params = {**ground.conventions, "epsilon": epsilon}
    return [
        _rows(name, values, windows, "all", DEFINITIONS[name], params) for name, values in numbers.items()
    ]


def on_texts(ground: Ground) -> list[Measured]:
    """Return how far and how sharply heads look on prose."""
    return _texts(ground, ground.plan.texts, "", " of prose")


def on_code(ground: Ground) -> list[Measured]:
    """Return some of it on source code, as metrics ending in `_code`."""
    found = _texts(ground, ground.plan.code, "_code", " of source code")
    return [each for each in found if each.metric.removesuffix("_code") in ON_CODE]


def _texts(ground: Ground, material: Material, ending: str, where: str) -> list[Measured]:
    numbers = ground.watched(material, TextWatch(), "texts")
    each = ground.chosen.length - FAR
    return [
        _rows(
            f"{name}{ending}",
            values,
            material,
            f"from {FAR}",
            DEFINITIONS[name] + where,
            ground.conventions,
            each=each,
        )
        for name, values in numbers.items()
    ]


def _rows(
    name: str,
    values: Any,
    material: Material,
    rows: str,
    definition: str,
    params: dict[str, Any],
    *,
    each: int | None = None,
    strata: Sequence[int] | None = None,
) -> Measured:
    """Return a score whose sequences are the clusters; `each`: rows a sequence, 0 for all but the first."""
    per = [1 if each is None else each or len(prompt) - 1 for prompt in material.prompts]
    return measured(
        name,
        values,
        [prompt.id for prompt in material.prompts],
        prompt_set=material.call,
        rows=rows,
        definition=definition,
        params=params,
        n=sum(per),
        strata=strata,
    )
