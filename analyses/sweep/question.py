"""`sparselens sweep`: methods at equal density, beside the oracle and random selections of their own shape.

Every point (a method at a density) is a run of kind `sweep` without rows of its own: its record says the policy that
was found, and the rows of `evals` and `prompt_scores` that the analysis writes are about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from sparselens.analyses.analysis import Analysis, Findings, Setting, Shown, model_card
from sparselens.analyses.cause.rows import table
from sparselens.analyses.sweep.frontier import POINTS, figure, headline, marks, ranked, wide
from sparselens.analyses.sweep.metric import COMPARED, METRICS, REFERENCES, TASK
from sparselens.analyses.sweep.plan import Sweep, phase_of, read_prompts, spread
from sparselens.analyses.sweep.rows import base_rows, column, point_rows
from sparselens.analyses.sweep.run import Study, Swept
from sparselens.kernels.policy import parse as parse_policy
from sparselens.storage.reader import connect
from sparselens.storage.trace import Trace
from sparselens.storage.writer import RunWriter
from sparselens.workbench.progress import Progress
from sparselens.workbench.run_card import policy_card

__all__ = ["ANALYSIS", "Sweep"]


def find(setting: Setting) -> Findings:
    """Measure every point, and write a run for each."""
    chosen: Sweep = setting.parameters
    prompts = read_prompts(setting.model, chosen)
    points = len(chosen.policies) * len(chosen.densities)
    tokens = sum(map(len, prompts)) * points
    with Progress(len(prompts), tokens, enabled=setting.progress) as bar:
        swept = Study(setting.model, chosen, setting.ledger, bar).run()
    plain, scores = base_rows(swept)
    blocks: list[tuple[str, dict[str, Any]]] = [
        ("evals", table(plain)),
        ("prompt_scores", {**table(scores), "task": TASK}),
    ]
    for place in range(len(swept.points)):
        about = {"run_id": _point_run(setting, swept, place)}
        rows, of_prompts = point_rows(swept, place, chosen.seeds)
        blocks.append(("evals", {**table(rows), **about}))
        blocks.append(("prompt_scores", {**table(of_prompts), "task": TASK, **about}))
    return Findings(blocks, _record(chosen), swept.prompts)


def _record(chosen: Sweep) -> dict[str, Any]:
    """Return what the sweep's own record says: it is about the base."""
    return {
        **policy_card(parse_policy(chosen.base)),
        "kernel": chosen.kernel,
        "prompt_set": chosen.prompts,
        "extra": {"definitions": METRICS, "references": REFERENCES, "compared": list(COMPARED)},
    }


def _point_run(setting: Setting, swept: Swept, place: int) -> str:
    """Write the run of a point, once, and return its id."""
    chosen: Sweep = setting.parameters
    point = swept.points[place]
    numbers = swept.numbers[place]
    policy = point.policy
    shared = asdict(chosen)
    same = {name: shared[name] for name in ("prompts", "seeds", "references", "decode", "base")}
    seconds = column(numbers, "seconds_per_token") * [len(prompt) for prompt in swept.prompts]
    meta = model_card(setting.session) | policy_card(policy)
    meta |= {
        "kind": TASK,
        "name": f"{policy.name} at {point.target:g}",
        "phase": phase_of(policy, chosen.decoding),
        "kernel": chosen.kernel,
        "prompt_set": chosen.prompts,
        "args": {"method": point.method, "target": point.target} | same,
        "extra": {"unit": swept.units[place], "reached": point.reached, "density": point.density},
    }

    def write() -> dict[str, str]:
        with RunWriter.start(setting.trace, meta=meta) as run:
            run.finish(
                {
                    "dense_call_share": float(np.mean(column(numbers, "dense_call_share"))),
                    "seconds": float(seconds.sum()),
                }
            )
        return {"run_id": run.run_id}

    return str(setting.ledger.once(f"run of {point.method} at {point.target:g}: {policy}", write)["run_id"])


def cost(setting: Setting) -> str:
    """Return what the sweep will run."""
    chosen: Sweep = setting.parameters
    prompts = read_prompts(setting.model, chosen)
    points = len(chosen.policies) * len(chosen.densities)
    beside = len(spread(prompts, chosen.references)) * (chosen.seeds + 1)
    tokens = sum(map(len, prompts))
    return (
        f"{len(chosen.policies)} methods × {len(chosen.densities)} densities on {len(prompts)} prompts of {tokens:,}"
        f" tokens together: {points * len(prompts):,} forward passes, and {points * beside:,} of oracles and random"
        " selections; more where a density is missed at first; an interrupted sweep goes on where it stopped"
    )


def show(trace: Trace, analysis_id: str, options: Mapping[str, Any]) -> Shown:
    """Return the points ranked by `metric` (recalled mass), each beside its references, and notes."""
    with connect(trace.path) as connection:
        points = wide(connection.sql(POINTS, {"analysis": analysis_id}, max_rows=None).df())
    args = trace.run(analysis_id).record.args
    frame = ranked(points, str(options.get("metric", "recalled_mass")))
    rows = [_shown(row, headline(points)) for _, row in frame.iterrows()]
    return Shown(rows, _notes(frame, args))


def _shown(row: Any, metrics: tuple[str, ...]) -> dict[str, Any]:
    """Return one printed row."""
    found: dict[str, Any] = {
        "rank": None if pd.isna(row["rank"]) else int(row["rank"]),
        "policy": row["policy"],
        "phase": row["phase"],
        "target": row["target"],
        "density": row["density"],
    }
    for metric in metrics:
        found[metric] = row[metric]
        found[f"{metric} − random"] = _interval(row, f"{metric}_over_random")
        found[f"{metric} − oracle"] = row.get(f"{metric}_over_oracle")
    return found | {"marks": marks(row)}


def _interval(row: Any, name: str) -> str:
    if name not in row or pd.isna(row[name]):
        return ""
    return f"{row[name]:+.3f} [{row[f'{name}_low']:+.3f}, {row[f'{name}_high']:+.3f}]"


def _notes(frame: Any, args: Mapping[str, Any]) -> list[str]:
    """Return what stands behind the table."""
    n, clusters = int(frame["density_n"].max()), int(frame["density_clusters"].max())
    beside = args["references"] or n
    made = [
        f"{args['prompts']}: {n} prompts in {clusters} clusters; intervals: 95 % bootstrap over clusters, paired by"
        f" prompt, and over {args['seeds']} random selections, which ran through the model on {beside} prompts",
        "off-label points, points that are not within 2 % of the density and points with dense calls have no rank",
    ]
    broken = frame[(frame["above_oracle"] > 0) | (frame["above_oracle_mass"] > 0)]
    made += [
        f"{row['policy']} recalled more than the bound: {row['above_oracle']:g} heads above the oracle,"
        f" {row['above_oracle_mass']:g} layers above the best pairs (means over prompts)"
        for _, row in broken.iterrows()
    ]
    return made if len(broken) else [*made, "no point recalled more mass than the oracle of its shape"]


def drawn(trace: Trace, analysis_id: str, options: Mapping[str, Any]) -> Any:
    """Return the frontier by `metric` (recalled mass); `phase` where a sweep has several."""
    with connect(trace.path) as connection:
        points = wide(connection.sql(POINTS, {"analysis": analysis_id}, max_rows=None).df())
    if "phase" in options:
        points = points[points["phase"] == options["phase"]]
    return figure(points, str(options.get("metric", "recalled_mass")))


ANALYSIS = Analysis(
    name="sweep",
    question="which policies keep what matters at equal density, against oracles and random selections?",
    parameters=Sweep,
    find=find,
    cost=cost,
    show=show,
    figure=drawn,
)
