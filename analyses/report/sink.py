"""The part of a report about sinks: attention on the first token under base and runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparselens.analyses.report.command import analyse, read_tables
from sparselens.analyses.report.data import Evidence
from sparselens.analyses.report.fidelity import evaluated
from sparselens.analyses.report.number import NONE, number, share
from sparselens.analyses.report.page import (
    Block,
    Cell,
    Missing,
    Paragraph,
    Section,
    Table,
    Verbatim,
    Words,
    filled,
)
from sparselens.analyses.report.role import SINKS
from sparselens.analyses.sinks.profile import ranges

TOLD = (
    "sink_rate",
    "sink_alpha",
    "value_drain",
    "other_sinks",
    "sink_kept",
    "sink_mass_base",
    "sink_mass_run",
    "sink_change",
    "sink_to_oldest",
    "sink_to_newest",
    "sink_to_later",
    "sink_to_others",
    "sink_to_unstored",
    "new_sinks",
    "lost_sinks",
    "nll_change_kept",
    "nll_change_dropped",
)
"""Metrics of the analysis `sinks` that a report tells."""


def sinks(evidence: Evidence, called: dict[str, Verbatim]) -> Section:
    """Return the section: attention on the first token under base and runs."""
    rows: list[list[Words | Cell]] = []
    layered = False
    rated = False
    for run in (evidence.base, *evidence.runs):
        run_id = run["run_id"]
        by_head = evidence.by_head[run_id]
        rates = [scores["sink_rate"] for scores in by_head.values() if "sink_rate" in scores]
        alphas = [scores["sink_alpha"] for scores in by_head.values() if "sink_alpha" in scores]
        layers = {
            row["layer"]: row["value"]
            for row in evidence.head_scores.get(run_id, [])
            if row["head"] is None and (row["analysis"], row["metric"]) == ("sinks", "sink_rate")
        }
        layered, rated = layered or bool(layers), rated or bool(rates)
        rows.append(
            [
                called[run_id],
                share(evidence.summaries.get(run_id, {}).get("sink_mass")),
                share(_mean(rates)),
                number(_mean(alphas)),
                ranges([layer for layer, value in layers.items() if value >= SINKS])
                or (NONE if not layers else "none"),
                _most_changed(evidence, run_id),
            ]
        )
    columns = (
        "run",
        "mass on the first token",
        "sink_rate (roles)",
        "sink_alpha (roles)",
        "layers where half of the heads sink",
        "heads whose sink mass changed most",
    )
    blocks: list[Block] = [
        filled(Table("Attention on the first token; means over heads", columns, rows), NONE)
    ]
    blocks.append(
        Paragraph(
            "sink change: run − base of the mean mass on the first token, end_to_end, over the rows ≥ 8 among"
            f" {evidence.rows}.",
            quiet=True,
        )
    )
    blocks += _changes(evidence, called)
    if not rated:
        blocks.append(
            Missing("Sink rates of heads were not measured", [analyse(evidence, "roles", evidence.base)])
        )
    if not layered:
        every = (evidence.base, *evidence.runs)
        again = [read_tables(evidence, "sinks", run) for run in every]
        blocks.append(Missing("Sinks by layer were not measured", again))
    return Section("sinks", "Sinks", blocks)


def _changes(evidence: Evidence, called: dict[str, Verbatim]) -> list[Block]:
    """Return what `sinks` stored about each run and its base: a row a metric, a column a run."""
    ids = [evidence.base["run_id"], *(run["run_id"] for run in evidence.runs)]
    stored = {
        run_id: {row["metric"]: row for row in evidence.evals.get(run_id, []) if row["analysis"] == "sinks"}
        for run_id in ids
    }
    rows: list[list[Words | Cell]] = [
        [metric, *(evaluated(stored[run_id].get(metric)) for run_id in ids)]
        for metric in TOLD
        if any(metric in found for found in stored.values())
    ]
    columns: tuple[Words, ...] = ("metric", *(called[run_id] for run_id in ids))
    caption = "Sinks of base and run, means over layers, heads and prompts; more is in evals (task sinks)"
    return [filled(Table(caption, columns, rows, scale="row"), NONE)] if rows else []


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _most_changed(evidence: Evidence, run_id: str) -> str:
    """Return the three heads whose mass on the first token changed most."""
    found = [row for row in evidence.heads.get((run_id, "end_to_end"), []) if row["sink_change"] is not None]
    found.sort(key=lambda row: -abs(row["sink_change"]))
    return (
        ", ".join(f"{row['head_name']} {number(row['sink_change'], sign=True)}" for row in found[:3]) or NONE
    )
