"""What `analyse circuit` prints: what the best edges carry by their number, and notes on heads, overlaps and reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparselens.analyses.analysis import Shown
from sparselens.analyses.comparison import queries
from sparselens.analyses.interval import Interval
from sparselens.storage.reader import connect
from sparselens.storage.trace import Trace

_FILE = "circuit/circuit.sql"
_CUT = 0.5
"""A read counts as cut where less than this share of the circuit's mass on it is kept."""

Rows = list[dict[str, Any]]


def show(trace: Trace, analysis_id: str, options: Mapping[str, Any]) -> Shown:
    """Return a row for each number of edges; under a sparse policy with the base's circuit beside the own one."""
    run = trace.run(analysis_id).record
    found = {
        name: asked(trace, name, analysis_id)
        for name in ("curves", "about", "evals", "nodes", "overlaps", "reads")
    }
    task = _task(run.args, run.extra, found["evals"])
    if not run.extra["applicable"]:
        return Shown([], [*task, "not applicable on this model: no circuit was searched"])
    about = found["about"][0]
    rows = _rows(found["curves"], about["circuit"], run.args["policy"] != run.args["base"])
    notes = [*task, *_carried(about, run.args, found["curves"])]
    notes += _heads(found["nodes"], int(options.get("top", 5)))
    notes += _shared(found["overlaps"], about["circuit"])
    notes += _cut(found["reads"], about, run.args)
    return Shown(rows, notes)


def asked(trace: Trace, name: str, analysis_id: str) -> Rows:
    """Return the rows of a statement of `circuit.sql`."""
    with connect(trace.path) as connection:
        found: Rows = (
            connection.sql(queries(_FILE)[name], {"analysis": analysis_id}, max_rows=None).arrow().to_pylist()
        )
    return found


def interval(row: Mapping[str, Any], value: str = "value", low: str = "ci_low", high: str = "ci_high") -> str:
    """Return a number with its interval."""
    lower, upper = (float("nan") if row[name] is None else float(row[name]) for name in (low, high))
    return str(Interval(float(row[value]), lower, upper, 0, 0))


def _rows(curves: Rows, circuit: str, sparse: bool) -> Rows:
    cells = {(row["circuit"] == circuit, row["measure"], row["asked"]): row for row in curves}
    rows = []
    for asked_for in sorted({row["asked"] for row in curves if row["measure"] == "complement"}):
        own = cells[True, "faithfulness", asked_for]
        row = {"asked": asked_for, "edges": own["n_edges"], "faithfulness": interval(own)}
        row["complement"] = interval(cells[True, "complement", asked_for])
        if sparse:
            theirs = cells[False, "faithfulness", asked_for]
            row |= {"base_edges": theirs["n_edges"], "base_circuit": interval(theirs)}
            row["base_circuit_base_job"] = interval(cells[False, "base_job", asked_for])
            row["own_base_job"] = interval(cells[True, "base_job", asked_for])
        rows.append(row)
    return rows


def _task(args: Mapping[str, Any], extra: Mapping[str, Any], evals: Rows) -> list[str]:
    found = {row["metric"]: row for row in evals}
    n, clusters = found["accuracy"]["n"], found["accuracy"]["n_clusters"]
    said = [
        f"{args['task'].removesuffix('()')}, {n} prompts in {clusters} clusters: {args['base']} answers"
        f" {extra['accuracy']:.0%}; chance {extra['chance']:.0%}, needed {extra['needed']:.0%}"
    ]
    if args["policy"] != args["base"] and extra["applicable"]:
        said.append(
            f"{args['policy']} answers {interval(found['accuracy'])}; it keeps {found['density']['value']:.1%} of the"
            " pairs of query and key"
        )
    return said


def _carried(about: Mapping[str, Any], args: Mapping[str, Any], curves: Rows) -> list[str]:
    """Return what the metric is, how large the circuit, and what grew at random beside it."""
    carried = f"{about['asked']} edges carry {interval(about, 'faithfulness')}"
    if not about["sufficient"]:
        carried += f", less than the asked {args['faithful']:g}: give larger sizes"
    notes = [
        f"metric: {about['metric']}; under {about['policy']} {about['whole']:.3g} whole, {about['empty']:.3g} with"
        f" everything ablated; {about['n']} test prompts in {about['n_clusters']} clusters",
        f"circuit {about['circuit']}: {carried}; {about['n_edges']} of {about['all_edges']:,} edges are left on a way"
        f" from input to logits, {about['n_heads']} heads and {about['n_mlps']} MLPs; edges not stored hold"
        f" {about['unstored']:.0%} of Σ |score|",
    ]
    grown = [row for row in curves if row["measure"] == "random"]
    notes += [f"{row['n_edges']} edges grown at random carry {interval(row)}" for row in grown]
    if about["whole"] <= about["empty"]:
        notes.append(
            "the whole model does no better than the ablated one: shares are of a gap that points the wrong way"
        )
    return notes


def _heads(nodes: Rows, top: int) -> list[str]:
    """Return the heads that were ablated, and those that the circuit loses most by."""
    tried = [row for row in nodes if row["ablated"] is not None]
    notes = [
        f"{row['node']}: ablating it changes the metric by {interval(row, 'ablated', 'ablated_low', 'ablated_high')}"
        f" (predicted {row['score']:.2g}); it writes {interval(row, 'direct', 'direct_low', 'direct_high')} into the"
        " logit difference itself"
        for row in sorted(tried, key=lambda row: -abs(row["ablated"]))[:top]
    ]
    most = sorted(tried, key=lambda row: -row["direct"])[:top]
    notes.append(
        "heads that write most for the answer: "
        + "; ".join(f"{row['node']} {interval(row, 'direct', 'direct_low', 'direct_high')}" for row in most)
    )
    lost = sorted((row for row in nodes if row["minimality"] is not None), key=lambda row: -row["minimality"])
    if lost:
        parts = "; ".join(
            f"{row['node']} {interval(row, 'minimality', 'minimality_low', 'minimality_high')}"
            for row in lost[:top]
        )
        idle = sum(row["minimality_low"] is None or row["minimality_low"] <= 0 for row in lost)
        notes.append(
            f"faithfulness lost without a head of the circuit: {parts}; of {len(lost)} heads tried {idle} cannot be"
            " told from 0"
        )
    return notes


def _shared(overlaps: Rows, circuit: str) -> list[str]:
    """Return what two circuits share against chance: with the base's, and between two halves."""
    notes = []
    for row in sorted(overlaps, key=lambda row: row["circuit_a"] == circuit):
        what = (
            "two halves of the scored prompts"
            if row["circuit_a"] == circuit
            else "the base's circuit and this"
        )
        rank = "" if row["spearman"] is None else f"; ρ of all heads' scores {row['spearman']:.2f}"
        notes.append(
            f"{what} share {row['shared']} of their best {row['size']} {row['level']} (Jaccard {row['jaccard']:.2f};"
            f" at random {row['expected']:.2g}, Jaccard {row['expected_jaccard']:.2g}){rank}"
        )
    return notes


def _cut(reads: Rows, about: Mapping[str, Any], args: Mapping[str, Any]) -> list[str]:
    """Return what the heads of the base's circuit read in the task's places, and what the policy leaves of it."""
    sparse = args["policy"] != args["base"]
    chosen = [row for row in reads if (row["circuit"] != about["circuit"]) == sparse]
    notes = []
    for row in sorted(chosen, key=lambda row: -row["mass_base"]):
        words = f"{row['read']}: mass {row['mass_base']:.2f} in {row['heads']} heads"
        words += f", most in {row['best']} ({row['best_mass']:.2f})"
        if sparse:
            cut = "CUT" if row["kept"] < _CUT else "kept"
            words += f"; {cut}: {row['kept']:.0%} of it is on kept keys, {row['mass']:.2f} is read under the policy"
        notes.append(words)
    return notes
