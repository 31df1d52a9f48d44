"""The part of a report about stored evaluations: fidelity beside its noise floor, needle runs, positions."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from sparselens.analyses.interval import Interval
from sparselens.analyses.report.command import read_tables
from sparselens.analyses.report.data import Evidence
from sparselens.analyses.report.number import NONE, interval, number, over
from sparselens.analyses.report.page import Block, Cell, Missing, Table, Verbatim, Words

TASK = "fidelity"
FLOOR = (
    ("KL(base ‖ run), whole text", "kl"),
    ("KL(base ‖ run), answer", "kl_answer"),
    ("|NLL change|, whole text", "nll_change_abs"),
    ("|NLL change|, answer", "nll_change_abs_answer"),
    ("same top-1 token, whole text", "top1_same"),
    ("same top-1 token, answer", "top1_same_answer"),
)
NEEDLES = (
    "retrieval_heads",
    "retained_retrieval",
    "retained_retrieval_find",
    "retained_retrieval_copy",
    "needle_kept",
    "needle_mass_base",
    "needle_mass",
    "sink_fallback",
    "needle_accuracy_forced_base",
    "needle_accuracy_forced",
    "needle_accuracy_free_base",
    "needle_accuracy_free",
)
"""Metrics of needle runs, told as they are stored."""
_AT = re.compile(r"kl_at_(\d+)_(\d+)")


def evaluations(evidence: Evidence, called: dict[str, Verbatim]) -> list[Block]:
    """Return what is stored about the runs: fidelity in three tables, other tasks in one; sinks have their section."""
    blocks = [*_floor(evidence, called), *_needles(evidence, called), *_positions(evidence, called)]
    blocks += _others(evidence, called)
    lacking = [run for run in evidence.runs if evidence.eval_of(run["run_id"], "kl", TASK) is None]
    if lacking:
        what = "Fidelity beside its noise floor, by position and of retrieval heads is not stored"
        blocks.append(Missing(what, [read_tables(evidence, TASK, run) for run in lacking]))
    return blocks


def noise(evidence: Evidence, run_id: str) -> str:
    """Return the noise floor of a run's next-token distributions: the base against itself, computed otherwise."""
    found = {
        row["metric"]: row["value"]
        for row in evidence.evals.get(run_id, [])
        if row["metric"].startswith("noise_kl") and "_answer" not in row["metric"]
    }
    said = [
        f"{name.removeprefix('noise_').replace('_', ', ')} {number(value)}" for name, value in found.items()
    ]
    return "; ".join(said) or NONE


def under_floor(evidence: Evidence, run_id: str) -> tuple[int, int] | None:
    """Return how many heads write no more than the base does when it is computed otherwise, of how many."""
    rows = evidence.rows if str(evidence.rows).startswith("span:") else "all"
    errors = evidence.errors[run_id].by_head if run_id in evidence.errors else {}
    floor = {
        (row["layer"], row["head"]): row["value"]
        for row in evidence.head_scores.get(run_id, [])
        if (row["metric"], row["rows"]) == ("noise_write_error", rows) and row["head"] is not None
    }
    both = [head for head in errors if head in floor]
    return (sum(errors[head].mean <= floor[head] for head in both), len(both)) if both else None


def _floor(evidence: Evidence, called: dict[str, Verbatim]) -> list[Block]:
    """Return the per-token numbers with the floor under them."""

    def cell(run_id: str, metric: str) -> Cell:
        row = evidence.eval_of(run_id, metric, TASK)
        if row is None:
            return Cell(NONE)
        floor = _floors(evidence, run_id, metric)
        return Cell(f"{evaluated(row).words}{f'; floor {floor}' if floor else ''}", stored(row))

    caption = "Beside the noise floor (the base against itself, computed otherwise)"
    return _table(evidence, called, caption, [(words, metric) for words, metric in FLOOR], cell)


def _floors(evidence: Evidence, run_id: str, metric: str) -> str:
    """Return the floor of a metric: of another kernel, then of another dtype, where they are stored."""
    said = []
    for row in evidence.evals.get(run_id, []):
        name = row["metric"].removeprefix(f"noise_{metric}")
        if name != row["metric"] and not name.startswith("_answer") and row["task"] == TASK:
            said.append(f"{number(row['value'])}{f' ({name[1:]})' if name else ''}")
    return ", ".join(said)


def _needles(evidence: Evidence, called: dict[str, Verbatim]) -> list[Block]:
    """Return what is left of retrieval on needle runs."""

    def cell(run_id: str, metric: str) -> Cell:
        return evaluated(evidence.eval_of(run_id, metric, TASK))

    caption = "Needle runs: what retrieval heads retain, and answers"
    return _table(evidence, called, caption, [(metric, metric) for metric in NEEDLES], cell)


def _positions(evidence: Evidence, called: dict[str, Verbatim]) -> list[Block]:
    """Return KL by position."""
    found = {
        row["metric"]: tuple(map(int, match.groups()))
        for rows in evidence.evals.values()
        for row in rows
        if row["task"] == TASK and (match := _AT.fullmatch(row["metric"]))
    }
    ordered = sorted(found, key=lambda metric: found[metric])

    def cell(run_id: str, metric: str) -> Cell:
        return evaluated(evidence.eval_of(run_id, metric, TASK))

    names = [(f"{found[metric][0]}–{found[metric][1]}", metric) for metric in ordered]
    return _table(evidence, called, "KL(base ‖ run) by position, nats", names, cell, scale="table")


def _others(evidence: Evidence, called: dict[str, Verbatim]) -> list[Block]:
    """Return evaluations of other tasks, as they are stored."""
    found = {
        (row["task"], row["metric"]): None
        for run in evidence.runs
        for row in evidence.evals.get(run["run_id"], [])
        if row["task"] not in (TASK, "sinks")
    }
    rows: list[list[Words | Cell]] = []
    for task, metric in sorted(found):
        stored_rows = [evidence.eval_of(run["run_id"], metric, task) for run in evidence.runs]
        there = [row for row in stored_rows if row is not None and row["n"] is not None]
        said = dict.fromkeys(over(row["n"], row["n_clusters"] or 0, "observations") for row in there)
        name = (Verbatim(metric), " (", Verbatim(task), ")")
        rows.append([name, " / ".join(said), *map(evaluated, stored_rows)])
    columns: tuple[Words, ...] = ("metric (task)", "over", *(called[run["run_id"]] for run in evidence.runs))
    return (
        [Table("Evaluations that analyses stored about these runs", columns, rows, scale="row")]
        if rows
        else []
    )


def _table(
    evidence: Evidence,
    called: dict[str, Verbatim],
    caption: str,
    metrics: list[tuple[str, str]],
    cell: Callable[[str, str], Cell],
    scale: Any = "row",
) -> list[Block]:
    """Return a row for each metric that a run has, a column a run; none where no run has any."""
    ids = [run["run_id"] for run in evidence.runs]
    rows: list[list[Words | Cell]] = []
    for words, metric in metrics:
        cells = [cell(run_id, metric) for run_id in ids]
        if any(each.words != NONE for each in cells):
            there = [row for run_id in ids if (row := evidence.eval_of(run_id, metric, TASK)) and row["n"]]
            said = dict.fromkeys(over(row["n"], row["n_clusters"] or 0) for row in there)
            rows.append([words, " / ".join(said), *cells])
    columns: tuple[Words, ...] = ("", "over", *(called[run_id] for run_id in ids))
    return [Table(caption, columns, rows, scale=scale)] if rows else []


def evaluated(row: dict[str, Any] | None) -> Cell:
    """Return a stored value with its interval."""
    if row is None or row["value"] is None:
        return Cell(NONE)
    found = stored(row)
    return Cell(interval(found), found)


def stored(row: dict[str, Any]) -> Interval:
    """Return the interval that a row of a result table holds; NaN bounds where it has none."""
    low, high = (np.nan if row[name] is None else float(row[name]) for name in ("ci_low", "ci_high"))
    return Interval(float(row["value"]), low, high, row["n"] or 0, row["n_clusters"] or 0)
