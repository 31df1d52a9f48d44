"""The part of a report about what ran: models, policies, prompts, checks."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from sparselens.analyses.report.command import capture, read_tables
from sparselens.analyses.report.data import Evidence
from sparselens.analyses.report.fidelity import noise
from sparselens.analyses.report.number import NONE, share
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

CHECKS = ("verify_kernel", "verify_logits", "verify_calls")
_LIST = re.compile(r"\[([^\[\]]*)\]")
_FEW = 3


def names(evidence: Evidence) -> dict[str, Verbatim]:
    """Return what each run is called in tables: its policy, long lists counted; its id too where two are alike."""
    short = {
        run["run_id"]: shortened(str(run["policy"] or run["name"])) for run in (evidence.base, *evidence.runs)
    }
    times = Counter(short.values())
    return {
        run_id: Verbatim(f"{name} {run_id}" if times[name] > 1 else name) for run_id, name in short.items()
    }


def shortened(policy: str) -> str:
    """Return a policy's call with lists of more than three items counted: `full=[17 heads]`."""

    def counted(match: re.Match[str]) -> str:
        items = [item for item in match[1].split(",") if item.strip()]
        heads = all(re.fullmatch(r"\s*L\d+H\d+\s*", item) for item in items)
        return match[0] if len(items) <= _FEW else f"[{len(items)} {'heads' if heads else 'items'}]"

    return _LIST.sub(counted, policy)


def verified(run: dict[str, Any]) -> str:
    """Return `3/3`, `2/3, failed: kernel`, or `not checked`."""
    checks = {name.removeprefix("verify_"): run[name] for name in CHECKS}
    if all(value is None for value in checks.values()):
        return "not checked"
    failed = [name for name, value in checks.items() if value is False]
    missing = [name for name, value in checks.items() if value is None]
    words = [f"{sum(value is True for value in checks.values())}/{len(checks)}"]
    words += [f"FAILED: {', '.join(failed)}"] if failed else []
    words += [f"not checked: {', '.join(missing)}"] if missing else []
    return ", ".join(words)


def failed(run: dict[str, Any]) -> bool:
    """Return whether a check of the run failed."""
    return any(run[name] is False for name in CHECKS)


def ran(evidence: Evidence, called: dict[str, Verbatim]) -> Section:
    """Return the section: what is common, a row a run, and what each of them has to be said about."""
    blocks: list[Block] = [_common(evidence), _table(evidence, called)]
    blocks += [Paragraph(words) for words in _remarks(evidence, called)]
    unchecked = [
        capture(evidence, run, "--verify")
        for run in evidence.runs
        if all(run[name] is None for name in CHECKS)
    ]
    if unchecked:
        blocks.append(Missing("Not all runs were checked", unchecked))
    lacking = [run for run in evidence.runs if noise(evidence, run["run_id"]) == NONE]
    if lacking:
        again = [read_tables(evidence, "fidelity", run) for run in lacking]
        blocks.append(
            Missing("The noise floor (the base against itself, computed otherwise) is not stored", again)
        )
    return Section("ran", "What ran", blocks)


def _common(evidence: Evidence) -> Table:
    """Return what base and runs have in common, or each of their values."""
    every = [evidence.base, *evidence.runs]

    def same(column: str) -> Words:
        values = list(dict.fromkeys(str(run[column]) for run in every if run[column] is not None))
        return Verbatim(" · ".join(values)) if values else "not recorded"

    prompts = [row for row in evidence.prompts.values() if row["prompt_id"] in _reported(evidence)]
    sets: dict[str, int] = {}
    for row in prompts:
        sets[str(row["call"])] = sets.get(str(row["call"]), 0) + 1
    modes = ", ".join(dict.fromkeys(str(row["bos_mode"]) for row in prompts))
    said = ", ".join(f"{n} of {call}" for call, n in sets.items())
    rows: list[tuple[Words, Words]] = [
        ("model", same("model")),
        ("revision", same("model_revision")),
        (
            "weights (hash)",
            Verbatim(" · ".join(dict.fromkeys(str(run["weight_hash"])[:12] for run in every))),
        ),
        ("quantised before", same("quantisation")),
        ("dtype", same("dtype")),
        ("device", same("device")),
        ("kernel", same("kernel")),
        ("base", (Verbatim(str(evidence.base["policy"])), ", run ", Verbatim(evidence.base["run_id"]))),
        (
            "prompts",
            (f"{len(prompts)}, {sum(row['n_tokens'] for row in prompts):,} tokens: ", Verbatim(said)),
        ),
        ("start of text (BOS)", Verbatim(modes)),
    ]
    return Table("Base and runs in common", ("", "value"), rows)


def _reported(evidence: Evidence) -> set[str]:
    """The prompts that the base and some run have."""
    of = evidence.prompts_of
    return of[evidence.base["run_id"]] & set().union(*(of[run["run_id"]] for run in evidence.runs))


def _table(evidence: Evidence, called: dict[str, Verbatim]) -> Table:
    """Return a row for the base and each run: what they kept and whether that was checked."""
    rows: list[list[Words | Cell]] = []
    for run in (evidence.base, *evidence.runs):
        found = evidence.summaries.get(run["run_id"], {})
        rows.append(
            [
                called[run["run_id"]],
                share(found.get("density")),
                share(found.get("density_computed")),
                str(run["phase"] or "–"),
                share(run["dense_call_share"]),
                _flag(run["off_label"]),
                _flag(run["lookahead"]),
                verified(run),
                noise(evidence, run["run_id"]),
                Verbatim(run["run_id"]),
            ]
        )
    columns = (
        "run",
        "density",
        "density_computed",
        "phase",
        "dense calls",
        "off-label",
        "look-ahead",
        "verified",
        "noise floor",
        "id",
    )
    return filled(Table("What each kept, and whether that was checked", columns, rows), NONE)


def _flag(value: bool | None) -> str:
    return "–" if value is None else "yes" if value else "no"


def _remarks(evidence: Evidence, called: dict[str, Verbatim]) -> list[Words]:
    """Return what has to be known about single runs before their numbers are believed."""
    found: list[Words] = []
    of = evidence.prompts_of
    for run in evidence.runs:
        name = called[run["run_id"]]
        if name.text != run["policy"] and not name.text.endswith(run["run_id"]):
            found.append((name, " in full: ", Verbatim(str(run["policy"]))))
        if failed(run):
            found.append((name, f": A CHECK FAILED ({verified(run)}), do not trust this run."))
        if run["off_label"]:
            found.append(
                (name, ": off-label. Its paper trained the model with it; here the weights are as they were.")
            )
        if run["lookahead"]:
            found.append(
                (
                    name,
                    ": look-ahead. Which keys a row kept may depend on later tokens, the answer's among them.",
                )
            )
        if run["dense_call_share"]:
            found.append(
                (
                    name,
                    f": {share(run['dense_call_share'])} of the attention calls ran dense (phase or dense_below).",
                )
            )
        if run["status"] != "complete":
            found.append((name, f": the run is {run['status']}. These are the prompts it has."))
        shared = of[run["run_id"]] & of[evidence.base["run_id"]]
        if len(shared) < max(len(of[run["run_id"]]), len(of[evidence.base["run_id"]])):
            found.append((name, f": numbers are over the {len(shared)} prompts that base and run both have."))
    return found
