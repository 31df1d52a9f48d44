"""What is said of an analysis of sinks: phases of layers, later sinks by word, a row for every policy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from sparselens.analyses.comparison import queries
from sparselens.analyses.interval import Interval
from sparselens.analyses.sinks.measure import TASK
from sparselens.storage.manifest import RunRecord
from sparselens.storage.reader import Connection

PHASES = {
    "sink": ("sink_rate", 0.5, "at least half of the heads"),
    "drain": ("value_drain", -0.5, "at most half of what the others write"),
    "residual peak": ("residual_peak", 2.0, "at least twice the others' norm"),
}
"""A phase is on in a layer where the metric reaches this; a negative number is the most it may be."""
UNCHANGED = 0.01
"""The first token sees no other: no policy can move its residual norm; above this share something is wrong."""


def layer_rows(connection: Connection, analysis: str) -> list[dict[str, Any]]:
    """Return a row a layer of the run's own sinks."""
    found: list[dict[str, Any]] = (
        connection.sql(queries("sinks/sinks.sql")["layers"], {"analysis": analysis}).arrow().to_pylist()
    )
    return found


def phases(layers: Sequence[dict[str, Any]]) -> dict[str, list[int]]:
    """Return the layers in which sink, drain and residual peak are on."""
    return {
        name: [row["layer"] for row in layers if _on(row[metric], least)]
        for name, (metric, least, _) in PHASES.items()
    }


def _on(value: float | None, least: float) -> bool:
    return value is not None and (value >= least if least > 0 else value <= -least)


def base_notes(
    connection: Connection, record: RunRecord, layers: Sequence[dict[str, Any]], *, edge: int, top: int
) -> list[str]:
    """Return sentences on the run's own sinks: rate, phases and whether they agree, later sinks by word."""
    args, on = record.args, phases(layers)
    rate = _evals(connection, record)["sink_rate"]
    apart = [row["layer"] for row in layers if len({row["layer"] in each for each in on.values()}) > 1]
    said = "; ".join(f"{name} {ranges(found) or 'none'} ({PHASES[name][2]})" for name, found in on.items())
    agree = f"they agree in {len(layers) - len(apart)} of {len(layers)} layers"
    given = {"run": args["run"], "received": args["received"], "edge": edge, "top": top}
    tokens = connection.sql(queries("sinks/sinks.sql")["tokens"], given).arrow().to_pylist()
    return [
        f"sink_rate over all layers: {percent(rate)} (epsilon {args['epsilon']}, first {args['window']} rows)",
        f"layers that are on: {said}; {agree}" + (f", not in {ranges(apart)}" if apart else ""),
        f"later tokens that receive more than {args['received']}: {'; '.join(map(_word, tokens)) or 'none'}",
    ]


def _word(row: dict[str, Any]) -> str:
    """Return one text that is a later sink, as words."""
    ratios = [
        f"{name} {row[key]:.2g} ×" for key, name in (("residual", "norm"), ("write", "write")) if row[key]
    ]
    times = f"{row['times']} in {row['prompts']} prompts, layers {ranges(row['layers'])}"
    return f"{row['text']!r} ({times}; {', '.join(ratios)} the others' median)"


def pair_notes(
    connection: Connection, record: RunRecord, layers: Sequence[dict[str, Any]], *, edge: int, top: int
) -> list[str]:
    """Return sentences on what the policy changed: mass on the first token, where it went, new sinks, the check."""
    numbers = _evals(connection, record)
    if "sink_change" not in numbers:
        return ["the policy dropped nothing in any row from 8 on: its sinks are the base's"]
    found = {
        (row["metric"], row["layer"]): row["value"]
        for row in connection.sql(queries("sinks/change.sql")["layers"], {"analysis": record.run_id})
        .arrow()
        .to_pylist()
    }
    sinking = phases(layers)["sink"]
    notes = [
        f"first token kept in {percent(numbers['sink_kept'])} of the affected rows; mass on it"
        f" {numbers['sink_mass_base']} → {numbers['sink_mass_run']}"
        + (f", in layers {ranges(sinking)} {_through(found, sinking)}" if sinking else "")
        + f"; entropy {numbers['entropy_change']} nats",
    ]
    if "sink_to_oldest" in numbers:
        parts = ("oldest", "newest", "later", "others", "unstored")
        names = (
            "oldest kept key",
            "8 newest keys",
            "the base's other sinks",
            "other stored keys",
            "not stored",
        )
        went = ", ".join(
            f"{name} {numbers[f'sink_to_{part}'].mean:+.3f}" for part, name in zip(parts, names, strict=True)
        )
        notes.append(
            f"change of mass elsewhere: {went}; not stored of the run {numbers['unstored_mass'].mean:.3f}"
        )
    moved = [
        row["layer"]
        for row in layers
        if abs(found.get(("first_residual_change", row["layer"]), 0)) > UNCHANGED
    ]
    notes.append(
        "residual norm of the first token: "
        + (
            f"CHANGED by more than 1 % in layers {ranges(moved)}: no policy can do that"
            if moved
            else "unchanged"
        )
    )
    args = record.args
    given = {"run": record.parents[0], "base": record.parents[1], "received": args["received"]}
    tokens = connection.sql(
        queries("sinks/change.sql")["new_tokens"], given | {"edge": edge, "top": top}
    ).arrow()
    new = "; ".join(
        f"{row['text']!r} ({row['times']} in {row['prompts']} prompts, layers {ranges(row['layers'])};"
        f" {row['received_base']:.2f} → {row['received']:.2f})"
        for row in tokens.to_pylist()
    )
    return [*notes, f"sinks that the base does not have: {new or 'none'}"]


def _through(found: dict[tuple[str, int], float], layers: Sequence[int]) -> str:
    """Return the mass on the first token under base and run, mean over some layers."""
    means = (
        sum(found[name, layer] for layer in layers) / len(layers)
        for name in ("sink_mass_base", "sink_mass_run")
    )
    return " → ".join(f"{mean:.3g}" for mean in means)


_SHOWN = {
    "sink_kept": "sink_kept",
    "sink_mass": "sink_mass_run",
    "entropy_change": "entropy_change",
    "new_sinks": "new_sinks",
    "lost_sinks": "lost_sinks",
    "nll": "nll_run",
}
"""Columns of a policy's row, and the metrics that they show."""


def policy_rows(connection: Connection, record: RunRecord) -> list[dict[str, Any]]:
    """Return a row for the base, and one for every policy that was analysed against it with equal arguments.

    The base's numbers are on the rows that the policy of `record` affects.
    """
    args = {name: str(record.args[name]) for name in ("epsilon", "window", "received")}
    given = args | {"base": record.parents[1], "task": TASK}
    table = connection.sql(queries("sinks/change.sql")["policies"], given, max_rows=None).arrow().to_pylist()
    density = dict(connection.sql(queries("sinks/change.sql")["densities"]).rows)
    runs: dict[str, dict[str, Interval]] = {}
    for row in table:
        runs.setdefault(row["run_id"], {})[row["metric"]] = _interval(row)
    policy = {row["run_id"]: row["policy"] for row in table}
    base, mine = table[0]["base_policy"], runs[record.parents[0]]
    rows: list[dict[str, Any]] = [{"policy": f"{base} (base)", "density": density.get(record.parents[1])}]
    rows[0] |= dict.fromkeys(_SHOWN) | {
        "sink_mass": _mean(mine, "sink_mass_base"),
        "nll": _mean(mine, "nll_base"),
    }
    rows[0] |= {"nll_change": None, "rows": mine["nll_base"].n if "nll_base" in mine else 0}
    for run_id, numbers in runs.items():
        change = numbers.get("nll_change")
        row = {"policy": policy[run_id], "density": density.get(run_id)}
        row |= {shown: _mean(numbers, metric) for shown, metric in _SHOWN.items()}
        rows.append(row | {"nll_change": change and str(change), "rows": change.n if change else 0})
    return rows


def _evals(connection: Connection, record: RunRecord) -> dict[str, Interval]:
    """Return the numbers of the whole run by metric."""
    table = connection.sql(
        queries("sinks/change.sql")["evals"], {"analysis": record.run_id, "task": TASK}
    ).arrow()
    return {row["metric"]: _interval(row) for row in table.to_pylist()}


def _interval(row: dict[str, Any]) -> Interval:
    low, high = (float("nan") if row[name] is None else row[name] for name in ("ci_low", "ci_high"))
    return Interval(row["value"], low, high, row["n"], row["n_clusters"])


def _mean(numbers: dict[str, Interval], metric: str) -> float | None:
    return numbers[metric].mean if metric in numbers else None


def percent(number: Interval) -> str:
    """Return a share and its interval as percentages."""
    if number.low != number.low:
        return f"{number.mean:.1%}"
    return f"{number.mean:.1%} [{number.low:.1%}, {number.high:.1%}]"


def ranges(numbers: Iterable[int]) -> str:
    """Return numbers in order as `3–9, 12–29`."""
    found = list(numbers)
    if not found:
        return ""
    breaks = [at for at, (a, b) in enumerate(pairwise(found), start=1) if b != a + 1]
    runs = [found[a:b] for a, b in pairwise([0, *breaks, len(found)])]
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
