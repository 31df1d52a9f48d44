"""The top of a report: one sentence a run."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparselens.analyses.interval import Interval
from sparselens.analyses.report.data import Evidence
from sparselens.analyses.report.number import count, interval, number, over, share
from sparselens.analyses.report.page import Verbatim, Words
from sparselens.analyses.report.run import failed
from sparselens.analyses.report.study import headline

_KINDS = {
    "run_dense": "given back",
    "patch_pattern": "given their patterns back",
    "patch_z": "given their outputs back",
}


def lead(evidence: Evidence, called: dict[str, Verbatim]) -> list[Words]:
    """Return one sentence a run: what it kept, what that cost, which heads repair it; only what was measured."""
    return [_sentence(evidence, called[run["run_id"]], run) for run in evidence.runs]


def _sentence(evidence: Evidence, name: Verbatim, run: dict[str, Any]) -> Words:
    run_id = run["run_id"]
    parts = []
    density = evidence.summaries.get(run_id, {}).get("density")
    if density is not None:
        parts.append(f"kept {share(density)} of the pairs")
    parts += _lost(evidence, run_id) + _repaired(evidence, run_id)
    if not parts:
        parts.append("left no density and no losses in this trace")
    warning = " A CHECK OF THIS RUN FAILED: do not trust it." if failed(run) else ""
    return (name, f" {'; '.join(parts)}.{warning}")


def _lost(evidence: Evidence, run_id: str) -> list[str]:
    """Return what happened to the answers' loss, else to the text's."""
    for metric, what in (("answer_nll", "the answer's loss"), ("nll", "the loss of the whole text")):
        pair = evidence.paired(run_id, metric)
        if pair is None:
            continue
        moved = f"from {number(pair.before.mean)} to {number(pair.after.mean)} nats a token"
        words = f"{what} {_moved(pair.change)} {moved}"
        words += (
            f" (change {interval(pair.change, sign=True)}, {over(pair.change.n, pair.change.n_clusters)})"
        )
        found = [words]
        for answered in ("answer_generated", "answer_forced"):
            pair = evidence.paired(run_id, answered)
            if pair is not None:
                found.append(f"{count(pair.after.mean, pair.after.n)} prompts are still answered")
                found[-1] += f", {pair.before.mean * pair.before.n:.0f} were before"
                break
        return found
    return []


def _moved(change: Interval) -> str:
    """Return `rose` or `fell`; `went` where the interval holds zero or there is none."""
    if np.isnan(change.low) or change.low <= 0 <= change.high:
        return "went"
    return "rose" if change.mean > 0 else "fell"


def _repaired(evidence: Evidence, run_id: str) -> list[str]:
    """Return what giving heads back closes, beside as many random heads."""
    found = headline(evidence, run_id)
    if found is None:
        return []
    trial, random = found
    several = trial.n_heads != 1
    closed = interval(trial.values["gap_closed"], shares=True)
    words = (
        f"{trial.n_heads} head{'s' * several} {_KINDS[trial.kind]} close{'s' * (not several)} {closed} of it"
    )
    said = over(trial.values["gap_closed"].n, trial.values["gap_closed"].n_clusters)
    words += f" ({f'ranked by {trial.order_by}, ' if trial.order_by else ''}{said})"
    if random is not None and "gap_closed" in random.values:
        words += f", {random.n_heads} random one{'s' * several} {interval(random.values['gap_closed'], shares=True)}"
    return [words]
