"""What is printed of an analysis of fidelity: heads beside the floor; numbers of tokens and answers as notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparselens.analyses.analysis import Shown
from sparselens.analyses.comparison import queries
from sparselens.analyses.fidelity.table import ROWS
from sparselens.analyses.interval import Interval
from sparselens.storage.reader import connect
from sparselens.storage.trace import Trace

NAMED = 6
"""So many heads under the floor are named."""
_TOKENS = (
    ("kl", "noise_kl", "KL(base ‖ run), nats"),
    ("nll_change", None, "NLL change, nats a token"),
    ("nll_change_abs", "noise_nll_change_abs", "|NLL change|, nats"),
    ("top1_same", "noise_top1_same", "same most probable token"),
)
_RETAINED = {"retrieval": "retained", "retrieval_find": "first tokens", "retrieval_copy": "later tokens"}


def show(trace: Trace, analysis_id: str, options: Mapping[str, Any]) -> Shown:
    """Return the `top` heads by write_error on the rows that matter, each beside its floor; notes on all the rest."""
    record = trace.run(analysis_id).record
    with connect(trace.path) as connection:

        def ask(name: str, **more: Any) -> list[dict[str, Any]]:
            given = {"analysis": analysis_id, **more}
            found: list[dict[str, Any]] = (
                connection.sql(queries("fidelity/fidelity.sql")[name], given, max_rows=None)
                .arrow()
                .to_pylist()
            )
            return found

        there = {row["rows"] for row in ask("shown_rows")}
        over = next(rows for rows in ROWS if rows in there)
        heads = ask("shown", rows=over, floor=over if over.startswith("span:") else "all")
        evals = {row["metric"]: _interval(row) for row in ask("shown_evals")}
        roles = ask("shown_roles")
    rows = [row | {"rows": over} for row in heads[: int(options.get("top", 5))]]
    kinds: Mapping[str, Any] = record.extra["noise"]
    notes = [f"heads by write_error on {over}, as the run ran (scope end_to_end)", *_under(heads, kinds)]
    notes += _of_tokens(evals, kinds)
    notes += _of_positions(evals, int(record.args["bucket"]))
    notes += _of_needles(evals, record.extra["needles"])
    return Shown(rows, [*notes, *_of_roles(roles, record.extra["roles_missing"])])


def counted(n: int, noun: str = "prompt") -> str:
    """Return a number with its noun."""
    return f"{n} {noun}" + ("" if n == 1 else "s")


def _interval(row: Mapping[str, Any]) -> Interval:
    low, high = (float("nan") if row[name] is None else row[name] for name in ("ci_low", "ci_high"))
    return Interval(row["value"], low, high, row["n"], row["n_clusters"])


def _under(heads: Sequence[Mapping[str, Any]], kinds: Mapping[str, Any]) -> list[str]:
    """Return which heads write no more than the base does when it is computed otherwise."""
    found = []
    for kind, about in kinds.items():
        known = [row for row in heads if row[f"noise_{kind}"] is not None and row["write_error"] is not None]
        if not known:
            continue
        floor = sorted(row[f"noise_{kind}"] for row in known)
        under = [row["head_name"] for row in known if row["write_error"] <= row[f"noise_{kind}"]]
        names = ", ".join(under[:NAMED]) + (" …" if len(under) > NAMED else "")
        found.append(
            f"floor, {about['what']} ({counted(about['prompts'])}): median write_error {floor[len(floor) // 2]:.2g},"
            f" largest {floor[-1]:.2g}; heads at or under their floor: {len(under)} of {len(known)}"
            + (f" ({names})" if under else "")
        )
    return found


def _of_tokens(evals: Mapping[str, Interval], kinds: Mapping[str, Any]) -> list[str]:
    """Return the per-token numbers, over all rows, affected rows and the answer, each beside its floor."""
    found = []
    for name, floor, words in _TOKENS:
        where = (("", "all"), ("_affected", "affected rows"), ("_answer", "answer"))
        parts = [f"{said} {evals[name + each]}" for each, said in where if name + each in evals]
        suffixes = {
            f"{said}{kind}": f"{floor}{each}{about['suffix']}"
            for kind, about in kinds.items()
            for each, said in (("", ""), ("_answer", "answer, "))
        }
        floors = [
            f"{evals[metric].mean:.2g} ({said})"
            for said, metric in suffixes.items()
            if floor and metric in evals
        ]
        over = evals[name]
        found.append(
            f"{words}: {', '.join(parts)} ({counted(over.n)}, {counted(over.n_clusters, 'cluster')})"
            + (f"; floor {', '.join(floors)}" if floors else "")
        )
    return found


def _of_positions(evals: Mapping[str, Interval], bucket: int) -> list[str]:
    """Return KL by position."""
    parts, start = [], 0
    while (name := f"kl_at_{start}_{start + bucket - 1}") in evals:
        parts.append(f"{start}–{start + bucket - 1} {evals[name].mean:.3g}")
        start += bucket
    return [f"KL by position: {', '.join(parts)}"] if parts else []


def _of_needles(evals: Mapping[str, Interval], needles: Mapping[str, Any]) -> list[str]:
    """Return what retrieval heads retained, and how many needles were answered."""
    if not needles["prompts"]:
        return ["no needle prompts in this run: nothing is said about retained retrieval and answers"]
    words = f"needles: the base answered {needles['n_answered']} of {counted(needles['n_runs'], 'run')}"
    heads = evals.get("retrieval_heads")
    if heads is None or not heads.mean:
        found = [f"{words}; no head has a retrieval score above 0.1 there, so none is said to be retained"]
    else:
        parts = [
            f"{said} {evals[f'retained_{name}']}"
            for name, said in _RETAINED.items()
            if f"retained_{name}" in evals
        ]
        count = "1 head retrieves" if heads.mean == 1 else f"{heads.mean:.0f} heads retrieve"
        found = [
            f"{words}; {count} there (score above 0.1), of these scores: {', '.join(parts)}",
            f"of these heads: answer's place kept {evals['needle_kept']}, attention to it"
            f" {evals['needle_mass_base'].mean:.3g} → {evals['needle_mass'].mean:.3g}"
            + (
                f", fell back to the first token {evals['sink_fallback']}" if "sink_fallback" in evals else ""
            ),
        ]
    for name, how in (
        ("needle_accuracy_free", f"generating by itself ({needles['free']})"),
        ("needle_accuracy_forced", "teacher-forced"),
    ):
        before, after = evals.get(f"{name}_base"), evals.get(name)
        if before is not None and after is not None:
            found.append(f"needles answered {how}: {before.mean:.0%} → {after.mean:.0%} of {after.n}")
    return found


def _of_roles(roles: Sequence[Mapping[str, Any]], commands: Sequence[str]) -> list[str]:
    """Return what other roles retained, or what would have to be measured for that."""
    if roles:
        parts = [
            f"{row['metric'].removeprefix('retained_')} {row['mean']:.2f} ({row['low']:.2f} … {row['high']:.2f},"
            f" {counted(row['heads'], 'head')})"
            for row in roles
        ]
        return [
            f"retained of the scores that `roles` measured under both, mean over heads: {', '.join(parts)}"
        ]
    if not commands:
        return []
    lines = "".join(f"\n  {command}" for command in commands)
    return [f"what induction, previous- and duplicate-token heads retain needs this, then --again:{lines}"]
