"""The part of a report about roles: what became of the heads that had one in the base."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sparselens.analyses.report.command import analyse
from sparselens.analyses.report.data import Evidence, Head
from sparselens.analyses.report.fidelity import TASK
from sparselens.analyses.report.number import NONE, interval, number
from sparselens.analyses.report.page import Block, Cell, Missing, Paragraph, Section, Table, Verbatim, Words
from sparselens.analyses.roles.labels import DORMANT, RETRIEVAL, THRESHOLD, labels

SINKS = 0.5
_LISTED = 8


@dataclass(frozen=True)
class Role:
    """A role: the score it is judged by, the rule in words, and whether a head with these scores has it."""

    name: str
    metric: str
    rule: str
    held: Callable[[Mapping[str, float]], bool]


def _labelled(label: str) -> Callable[[Mapping[str, float]], bool]:
    return lambda scores: any(each.startswith(label) for each in labels(scores))


ROLES = (
    Role("retrieval", "retrieval", f"retrieval > {RETRIEVAL:g}", _labelled("retrieval head")),
    Role("induction", "induction", f"induction ≥ {THRESHOLD:g} at every gap", _labelled("induction head")),
    Role(
        "previous token",
        "previous_token",
        f"previous_token ≥ {THRESHOLD:g}",
        _labelled("previous-token head"),
    ),
    Role(
        "duplicate token",
        "duplicate_token",
        f"duplicate_token ≥ {THRESHOLD:g} at every gap",
        _labelled("duplicate-token head"),
    ),
    Role("sink", "sink_rate", f"sink_rate ≥ {SINKS:g}", lambda scores: scores.get("sink_rate", 0.0) >= SINKS),
    Role(
        "dormant",
        "sink_mass_code",
        f"sink_mass > {DORMANT:g} on prose and on code",
        _labelled("dormant head"),
    ),
)


def roles(evidence: Evidence, called: dict[str, Verbatim]) -> Section:
    """Return the section: a row a role, a column a run."""
    base = evidence.by_head[evidence.base["run_id"]]
    held = {role.name: [head for head, scores in base.items() if role.held(scores)] for role in ROLES}
    there = [role for role in ROLES if any(role.metric in scores for scores in base.values())]
    if not there:
        return Section(
            "roles",
            "What became of roles",
            [Missing("No roles were measured on the base", [analyse(evidence, "roles", evidence.base)])],
        )
    rows: list[list[Words | Cell]] = []
    for role in there:
        heads = held[role.name]
        cells = [_fate(evidence, run["run_id"], role, heads) for run in evidence.runs]
        rows.append([f"{role.name} ({role.rule})", _listed(heads), *cells])
    some = {head for role in there for head in held[role.name]}
    rest = [head for head in base if head not in some]
    rows.append(
        [
            "none of these",
            f"{len(rest)} heads",
            *(_errors(evidence, run["run_id"], rest) for run in evidence.runs),
        ]
    )
    columns: tuple[Words, ...] = (
        "role in the base",
        "heads",
        *(called[run["run_id"]] for run in evidence.runs),
    )
    caption = (
        "Mean write_error of the heads of a role; their mean score base → run, and how many keep the role"
    )
    blocks: list[Block] = [Table(caption, columns, rows, scale="table")]
    blocks.append(
        Paragraph(
            "Under a policy a key that it drops counts 0 in a score: see the reachable share in head_scores.",
            quiet=True,
        )
    )
    blocks += _retained(evidence, called)
    if "retrieval" not in {role.metric for role in there}:
        blocks.append(
            Missing("Retrieval heads were not measured", [analyse(evidence, "roles", evidence.base)])
        )
    scored = {role.metric for role in ROLES}
    again = [
        analyse(evidence, "roles", run)
        for run in evidence.runs
        if not any(scored & scores.keys() for scores in evidence.by_head[run["run_id"]].values())
    ]
    if again:
        blocks.append(Missing("Roles were not measured under these policies", again))
    return Section("roles", "What became of roles", blocks)


def _listed(heads: Sequence[Head]) -> str:
    names = [f"L{layer}H{head}" for layer, head in sorted(heads)]
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{len(names)}: {', '.join(names[:_LISTED])}{more}" if names else "none"


def _errors(evidence: Evidence, run_id: str, heads: Sequence[Head]) -> Cell:
    """Return the mean `write_error` of some heads."""
    if run_id not in evidence.errors or not heads:
        return Cell(NONE)
    found = evidence.errors[run_id].mean_of(heads)
    return Cell(interval(found), found)


def _fate(evidence: Evidence, run_id: str, role: Role, heads: Sequence[Head]) -> Cell:
    """Return what became of the heads of a role: what they write, and their score where it was measured again."""
    found = _errors(evidence, run_id, heads)
    base = evidence.by_head[evidence.base["run_id"]]
    run = evidence.by_head[run_id]
    both = [head for head in heads if role.metric in run.get(head, {})]
    if not both or not _same_measure(evidence, run_id, role.metric):
        return found
    before = float(np.mean([base[head][role.metric] for head in both]))
    after = float(np.mean([run[head][role.metric] for head in both]))
    kept = sum(role.held(run[head]) for head in both)
    words = f"{found.words}; score {number(before)} → {number(after)}, {kept} of {len(both)} keep it"
    return Cell(words, found.drawn)


def _same_measure(evidence: Evidence, run_id: str, metric: str) -> bool:
    """Return whether a score was measured on the same prompts and rows under base and run."""
    said = [
        {
            (row["prompt_set"], row["rows"], row["definition"])
            for row in evidence.head_scores.get(each, [])
            if row["metric"] == metric and row["head"] is not None
        }
        for each in (evidence.base["run_id"], run_id)
    ]
    return said[0] == said[1]


def _retained(evidence: Evidence, called: dict[str, Verbatim]) -> list[Block]:
    """Return the scores `retained_*` of heads: means over those that have one; pooled ones are told with fidelity."""
    rows: list[list[Words | Cell]] = []
    metrics = {
        row["metric"]: row["definition"]
        for run in evidence.runs
        for row in evidence.head_scores.get(run["run_id"], [])
        if row["metric"].startswith("retained_") and row["head"] is not None
        if evidence.eval_of(run["run_id"], row["metric"], TASK) is None
    }
    for metric, definition in sorted(metrics.items()):
        cells: list[str] = []
        for run in evidence.runs:
            found = evidence.by_head[run["run_id"]]
            values = [scores[metric] for scores in found.values() if metric in scores]
            cells.append(f"{number(float(np.mean(values)))} over {len(values)} heads" if values else NONE)
        rows.append([Verbatim(metric), Verbatim(definition or ""), *cells])
    if not rows:
        return []
    return [
        Table(
            "Retained: means over heads",
            ("metric", "what it is", *(called[run["run_id"]] for run in evidence.runs)),
            rows,
        )
    ]
