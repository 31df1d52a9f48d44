"""The part of a report about heads: which changed most what they write, in three scopes, and how they look."""

from __future__ import annotations

from typing import Any

from sparselens.analyses.comparison import spoken
from sparselens.analyses.interval import Interval
from sparselens.analyses.report.command import analyse, capture, difference
from sparselens.analyses.report.data import SCOPES, Evidence
from sparselens.analyses.report.number import NONE, interval, number, share
from sparselens.analyses.report.page import (
    Block,
    Cell,
    Grid,
    Grids,
    Heading,
    Missing,
    Paragraph,
    Section,
    Table,
    Verbatim,
    Words,
    filled,
)

WHERE = {
    "span:answer": "the rows that predict the answer",
    "affected": "rows where they dropped a key",
    "all": "all rows",
}


def heads(evidence: Evidence, called: dict[str, Verbatim], top: int) -> Section:
    """Return the section: grids of all heads, the same heads run beside run, and each run's `top` heads in full."""
    if evidence.rows is None:
        missing = Missing(
            "No per-head differences are stored", [difference(evidence, run) for run in evidence.runs]
        )
        return Section("heads", "Heads that changed most", [missing])
    compared = [run for run in evidence.runs if run["run_id"] in evidence.errors]
    blocks: list[Block] = [
        Paragraph(f"Ranked by write_error on {WHERE[evidence.rows]}, as the runs ran (end_to_end).")
    ]
    if compared:
        blocks.append(_grids(evidence, called, compared))
    if len(compared) > 1:
        blocks.append(_beside(evidence, called, compared, top))
    for run in compared:
        blocks += [Heading(called[run["run_id"]])] if len(evidence.runs) > 1 else []
        blocks.append(_table(evidence, called, run, top))
    apart = [capture(evidence, run) for run in evidence.runs if run not in compared]
    if apart:
        blocks.append(Missing("What heads write was not compared: the runs were captured apart", apart))
    if not evidence.by_head[evidence.base["run_id"]]:
        blocks.append(
            Missing(
                "Role scores of these heads are not in this trace",
                [analyse(evidence, "roles", evidence.base)],
            )
        )
    return Section("heads", "Heads that changed most", blocks)


def _grids(evidence: Evidence, called: dict[str, Verbatim], runs: list[dict[str, Any]]) -> Grids:
    """Return a grid of all heads for each run, on one scale."""
    n_layers, n_heads = evidence.size
    found = [
        Grid(called[run["run_id"]], "write_error", n_layers, n_heads, evidence.errors[run["run_id"]].by_head)
        for run in runs
    ]
    most = max((each.mean for grid in found for each in grid.values.values()), default=1.0)
    return Grids(
        f"write_error of every head on {WHERE[str(evidence.rows)]}: layers down, heads across", found, most
    )


def _beside(evidence: Evidence, called: dict[str, Verbatim], runs: list[dict[str, Any]], top: int) -> Table:
    """Return the heads that are among the first of any run, with their `write_error` in each."""
    ids = [run["run_id"] for run in runs]
    each = max(2, top // 2)
    first = [
        (row["layer"], row["head"]) for run_id in ids for row in evidence.heads[run_id, "end_to_end"][:each]
    ]
    roles = _roles(evidence)
    rows: list[list[Words | Cell]] = []
    for head in dict.fromkeys(first):
        found = [evidence.errors[run_id].by_head.get(head) for run_id in ids]
        rows.append([_name(head), *map(_error, found), roles.get(head, NONE)])
    caption = f"The {each} heads that changed most in each run, beside the others: write_error"
    columns: tuple[Words, ...] = ("head", *(called[run_id] for run_id in ids), "roles under the base")
    return filled(Table(caption, columns, rows, scale="table"), NONE)


def _table(evidence: Evidence, called: dict[str, Verbatim], run: dict[str, Any], top: int) -> Table:
    """Return one run's heads in full: three scopes, kept mass, divergence, overlap, roles."""
    run_id = run["run_id"]
    by_scope = {
        scope: {(row["layer"], row["head"]): row for row in evidence.heads.get((run_id, scope), [])}
        for scope in SCOPES
    }
    roles = _roles(evidence)
    rows: list[list[Words | Cell]] = []
    for row in evidence.heads[run_id, "end_to_end"][:top]:
        head = (row["layer"], row["head"])
        local = [by_scope[scope].get(head, {}) for scope in SCOPES[1:]]
        rows.append(
            [
                row["head_name"],
                _error(evidence.errors[run_id].by_head.get(head)),
                *(number(each.get("write_error")) for each in local),
                share(row["kept_mass"]),
                share(row["kept_mass_nosink"]),
                number(row["js"]),
                number(local[0].get("js")),
                share(row["top8_overlap"]),
                number(row["sink_change"], sign=True),
                roles.get(head, NONE),
            ]
        )
    columns = (
        "head",
        "write_error",
        "local_mask",
        "local_policy",
        "kept mass",
        "kept, no sink",
        "JS",
        "JS local_mask",
        "top-8 overlap",
        "sink change",
        "roles under the base",
    )
    caption = f"Heads of this run on {WHERE[str(evidence.rows)]}; write_error in three scopes"
    return filled(Table(caption, columns, rows), NONE)


def _roles(evidence: Evidence) -> dict[tuple[int, int], str]:
    """Return the base's role scores of every head in words."""
    return {head: spoken(scores) for head, scores in evidence.by_head[evidence.base["run_id"]].items()}


def _name(head: tuple[int, int]) -> str:
    return f"L{head[0]}H{head[1]}"


def _error(found: Interval | None) -> Cell:
    return Cell(NONE) if found is None else Cell(interval(found), found)
