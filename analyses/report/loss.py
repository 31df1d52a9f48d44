"""The part of a report about losses: answers, text, KL, by needle family and by depth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sparselens.analyses.interval import Interval
from sparselens.analyses.report.command import capture
from sparselens.analyses.report.data import Evidence, Paired
from sparselens.analyses.report.fidelity import evaluations, under_floor
from sparselens.analyses.report.number import NONE, count, interval, number, over
from sparselens.analyses.report.page import Block, Cell, Missing, Section, Table, Verbatim, Words

PRESERVED = 0.1
"""A head is preserved where the whole interval of its `write_error` lies under this, changed where it lies over."""
_KL = (
    ("KL(base ‖ run), affected rows", "kl_affected"),
    ("KL(base ‖ run), whole text", "kl"),
    ("same top-1 token, affected rows", "top1_affected"),
    ("same top-1 token, whole text", "top1"),
)
_ANSWERED = (
    ("prompts answered, generating", "answer_generated"),
    ("prompts answered, teacher-forced", "answer_forced"),
)
_KNOWN = ("answer_nll", "nll", *(metric for _, metric in _ANSWERED))


def losses(evidence: Evidence, called: dict[str, Verbatim]) -> Section:
    """Return the section: what the answers, the text and the heads lost, run beside run."""
    blocks: list[Block] = [_cost(evidence, called)]
    if evidence.paired(evidence.runs[0]["run_id"], "answer_nll") is None:
        blocks.append(
            Missing(
                "The prompts have no answers, so no answer was lost",
                [capture(evidence, evidence.runs[0], "--prompts", "needles(length=512,n=8)")],
            )
        )
    elif all(evidence.paired(run["run_id"], "answer_generated") is None for run in evidence.runs):
        again = [capture(evidence, run, "--generate", "16") for run in evidence.runs]
        blocks.append(Missing("No answer was generated freely", again))
    blocks += _by(evidence, called, "family", "By needle family or template", lambda row: row["cluster"])
    blocks += _by(
        evidence, called, "depth", "By depth of the needle (0: start, 1: end)", lambda row: row["depth"]
    )
    blocks += evaluations(evidence, called)
    return Section("kept", "What was preserved, what was dropped", blocks)


def _cost(evidence: Evidence, called: dict[str, Verbatim]) -> Table:
    """Return losses, KL, answers and heads: a row each, a column a run."""
    ids = [run["run_id"] for run in evidence.runs]
    rows: list[list[Words | Cell]] = []
    for what, metric in (("answer NLL, nats a token", "answer_nll"), ("whole-text NLL, nats a token", "nll")):
        rows += _score(evidence, ids, what, metric)
    for what, column in _KL:
        found = [evidence.token_change(run_id, column) for run_id in ids]
        if any(each.n for each in found):
            shares = column.startswith("top1")
            rows.append([what, _over(found), *(interval(each, shares=shares) for each in found)])
    for what, metric in _ANSWERED:
        pairs = [evidence.paired(run_id, metric) for run_id in ids]
        if any(pairs):
            rows.append([what, _over([pair.before for pair in pairs if pair]), *map(_answered, pairs)])
    others = sorted({metric for _, metric in evidence.scores} - set(_KNOWN))
    for metric in others:
        rows += _score(evidence, ids, Verbatim(metric), metric)
    rows += _head_shares(evidence, ids)
    columns: tuple[Words, ...] = ("", "over", *(called[run_id] for run_id in ids))
    return Table("Base → run, and the change with its 95 % interval", columns, rows, scale="row")


def _score(evidence: Evidence, ids: Sequence[str], what: Words, metric: str) -> list[list[Words | Cell]]:
    """Return two rows about a score: base → run, and the change; none where it was not recorded."""
    pairs = [evidence.paired(run_id, metric) for run_id in ids]
    if not any(pairs):
        return []
    values = [f"{number(pair.before.mean)} → {number(pair.after.mean)}" if pair else NONE for pair in pairs]
    changes = [Cell(interval(pair.change, sign=True), pair.change) if pair else Cell(NONE) for pair in pairs]
    there = [pair.change for pair in pairs if pair]
    return [[what, _over(there), *values], ["  its change", "", *changes]]


def _over(found: Sequence[Interval]) -> str:
    """Return what the runs' means are over, once where it is the same for all."""
    said = dict.fromkeys(over(each.n, each.n_clusters) for each in found if each.n)
    return " / ".join(said)


def _answered(pair: Paired | None) -> str:
    return (
        NONE
        if pair is None
        else f"{count(pair.before.mean, pair.before.n)} → {count(pair.after.mean, pair.after.n)}"
    )


def head_shares(evidence: Evidence, run_id: str) -> tuple[int, int, int] | None:
    """Return how many heads are preserved, changed, and compared at all; None where none was compared."""
    if run_id not in evidence.errors:
        return None
    found = evidence.errors[run_id].by_head.values()
    kept = sum(each.high < PRESERVED for each in found)
    return kept, sum(each.low > PRESERVED for each in found), len(found)


def _head_shares(evidence: Evidence, ids: Sequence[str]) -> list[list[Words | Cell]]:
    """Return rows that count preserved and changed heads, and those that cannot be told."""
    found = [head_shares(evidence, run_id) for run_id in ids]
    if not any(found):
        return []

    def said(which: Callable[[tuple[int, int, int]], int]) -> list[str]:
        return [
            f"{which(each)} of {each[2]} ({which(each) / each[2]:.1%})".replace("%", " %") if each else NONE
            for each in found
        ]

    where = str(evidence.rows)
    floors = [under_floor(evidence, run_id) for run_id in ids]
    under: list[list[Words | Cell]] = []
    if any(floors):
        counts = [f"{each[0]} of {each[1]}" if each else NONE for each in floors]
        under.append(["heads at or under their noise floor", where, *counts])
    return [
        [f"heads preserved (write_error < {PRESERVED:g})", where, *said(lambda each: each[0])],
        [f"heads changed (write_error > {PRESERVED:g})", where, *said(lambda each: each[1])],
        ["heads whose interval holds both", where, *said(lambda each: each[2] - each[0] - each[1])],
        *under,
    ]


def _by(
    evidence: Evidence,
    called: dict[str, Verbatim],
    what: str,
    caption: str,
    key: Callable[[dict[str, Any]], Any],
) -> list[Block]:
    """Return answer NLL and answers by some property of the prompts, where it takes more than one value."""
    with_answer = evidence.scores.get((evidence.base["run_id"], "answer_nll"), {})
    groups: dict[Any, list[str]] = {}
    for prompt in with_answer:
        value = key(evidence.prompts[prompt]) if prompt in evidence.prompts else None
        if value is not None:
            groups.setdefault(value, []).append(prompt)
    if len(groups) < 2:
        return []
    rows: list[list[Words | Cell]] = []
    for value, prompts in sorted(groups.items()):
        name: Words = Verbatim(value) if isinstance(value, str) else f"{value:g}"
        rows.append(
            [
                name,
                str(len(prompts)),
                *(_group_cell(evidence, run["run_id"], prompts) for run in evidence.runs),
            ]
        )
    columns: tuple[Words, ...] = (what, "prompts", *(called[run["run_id"]] for run in evidence.runs))
    note = "Answer NLL base → run, nats a token; its change where there are two clusters or more; prompts answered"
    return [Table(f"{caption}. {note}", columns, rows, scale="table")]


def _group_cell(evidence: Evidence, run_id: str, prompts: Sequence[str]) -> Cell:
    """Return one group under one run: NLL, its change where it has an interval, prompts answered."""
    pair = evidence.paired(run_id, "answer_nll", prompts)
    if pair is None:
        return Cell(NONE)
    words = f"{number(pair.before.mean)} → {number(pair.after.mean)}"
    if not np.isnan(pair.change.low):
        words += f", change {interval(pair.change, sign=True)}"
    for metric in ("answer_generated", "answer_forced"):
        answered = evidence.paired(run_id, metric, prompts)
        if answered is not None:
            return Cell(f"{words}; {_answered(answered)}", pair.change)
    return Cell(words, pair.change)
