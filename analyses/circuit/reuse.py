"""`circuit_reuse`: whether circuits of different tasks, or of one task under different policies, use the same heads.

Reads the tables of the circuits that a trace has. Every pair of one model's is compared at equal size, beside what as
many edges or heads drawn at random would share (Merullo et al., arXiv 2310.08744, give the overlap without that).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from sparselens.analyses.analysis import Analysis, Findings, Setting, Shown
from sparselens.analyses.circuit.overlap import Ranking, compared
from sparselens.storage.reader import connect
from sparselens.storage.trace import Trace

ALL = "all"
_CIRCUITS = """
SELECT c.circuit, c.task, c.policy, c.prompts, c.all_edges, c.stored, c.analysis_id, r.weight_hash, r.dtype,
       row_number() OVER (PARTITION BY r.weight_hash, r.dtype, c.prompts, c.policy ORDER BY r.created_at DESC) AS age
FROM circuits c JOIN runs r ON r.run_id = c.analysis_id ORDER BY c.prompts, c.policy, c.circuit
"""
_EDGES = (
    "SELECT sender, receiver FROM circuit_edges WHERE circuit = $circuit AND rank <= $count ORDER BY rank"
)
_HEADS = """
SELECT node, score FROM circuit_nodes WHERE circuit = $circuit AND head IS NOT NULL ORDER BY layer, head
"""
_SHOWN = """
SELECT circuit_a, circuit_b, level, size, shared, expected, jaccard, expected_jaccard, p, spearman
FROM circuit_overlaps_history WHERE analysis_id = $analysis ORDER BY level DESC, jaccard DESC, circuit_a, circuit_b
"""


@dataclass(frozen=True)
class CircuitReuse:
    """`circuits` by id, or `all`: of each task's prompts and policy the newest one.

    Compared are their best `edges` and their best `heads`, by |score|.
    """

    circuits: tuple[str, ...] = (ALL,)
    edges: int = 200
    heads: int = 20

    def __post_init__(self) -> None:
        for name in ("edges", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"circuit_reuse: {name} is 1 or more, not {getattr(self, name)}")


def completed(trace: Trace, chosen: CircuitReuse) -> CircuitReuse:
    """Return the parameters with the circuits named one by one; `ValueError` where there are fewer than two."""
    rows = _asked(trace, _CIRCUITS)
    there = [row["circuit"] for row in rows]
    newest = [row["circuit"] for row in rows if row["age"] == 1]
    named = newest if ALL in chosen.circuits else list(chosen.circuits)
    for name in named:
        if name not in there:
            raise ValueError(f"no circuit {name!r} in this trace; it has {', '.join(there) or 'none'}")
    if len(set(named)) < 2:
        raise ValueError(
            f"circuit_reuse compares circuits, and this trace has {len(newest)}: run `sparselens analyse circuit` on"
            " more tasks or policies first"
        )
    return replace(chosen, circuits=tuple(sorted(set(named))))


def find(setting: Setting) -> Findings:
    """Compare every pair of circuits of one model; `ValueError` where there is none, or too few edges are stored."""
    chosen: CircuitReuse = setting.parameters
    about = [row for row in _asked(setting.trace, _CIRCUITS) if row["circuit"] in chosen.circuits]
    short = [row for row in about if row["stored"] < chosen.edges]
    if short:
        raise ValueError(
            f"circuit_reuse: {short[0]['circuit']} has {short[0]['stored']} edges stored, {chosen.edges} are compared"
        )
    rankings = {row["circuit"]: _ranking(setting.trace, row["circuit"], chosen.edges) for row in about}
    pairs = [
        (a, b)
        for a, b in combinations(about, 2)
        if (a["weight_hash"], a["dtype"]) == (b["weight_hash"], b["dtype"])
    ]
    if not pairs:
        raise ValueError("circuit_reuse: no two of these circuits are of one model")
    rows = [
        (
            "circuit_overlaps",
            compared(
                rankings[a["circuit"]],
                rankings[b["circuit"]],
                edges=chosen.edges,
                heads=chosen.heads,
                among=a["all_edges"],
            ),
        )
        for a, b in pairs
    ]
    return Findings(rows, {"parents": list(dict.fromkeys(row["analysis_id"] for row in about))})


def _ranking(trace: Trace, circuit: str, count: int) -> Ranking:
    edges = _asked(trace, _EDGES, circuit=circuit, count=count)
    heads = _asked(trace, _HEADS, circuit=circuit)
    return Ranking(
        circuit, [(row["sender"], row["receiver"]) for row in edges], [float(row["score"]) for row in heads]
    )


def _asked(trace: Trace, text: str, **given: Any) -> list[dict[str, Any]]:
    with connect(trace.path) as connection:
        found: list[dict[str, Any]] = connection.sql(text, given, max_rows=None).arrow().to_pylist()
    return found


def cost(setting: Setting) -> str:
    """Return what is read."""
    return f"{len(setting.parameters.circuits)} circuits of the trace, from tables alone"


def show(trace: Trace, analysis_id: str, options: Mapping[str, Any]) -> Shown:
    """Return a row a pair and level; notes name the circuits, and the heads that most of them have among their best."""
    args = trace.run(analysis_id).record.args
    about = [row for row in _asked(trace, _CIRCUITS) if row["circuit"] in args["circuits"]]
    name = {row["circuit"]: f"c{number}" for number, row in enumerate(about, start=1)}
    rows = _asked(trace, _SHOWN, analysis=analysis_id)
    for row in rows:
        row |= {side: name.get(row[side], row[side]) for side in ("circuit_a", "circuit_b")}
    notes = [
        f"{name[row['circuit']]}: {row['prompts']} under {row['policy']}, {row['circuit']}" for row in about
    ]
    notes.append(
        f"the best {args['edges']} edges and {args['heads']} heads of each circuit; expected: shared by as many drawn"
        " at random, p: probability that these share as many; MLPs serve all tasks, so that edges share far more"
    )
    return Shown(rows, [*notes, _common(trace, args, 2 * int(options.get("top", 5)))])


def _common(trace: Trace, args: Mapping[str, Any], top: int) -> str:
    """Return the heads that are among the best of most circuits."""
    counted: Counter[str] = Counter()
    for circuit in args["circuits"]:
        heads = sorted(_asked(trace, _HEADS, circuit=circuit), key=lambda row: -abs(row["score"]))
        counted.update(row["node"] for row in heads[: args["heads"]])
    common = ", ".join(f"{node} ({times})" for node, times in counted.most_common(top))
    return f"heads among the best {args['heads']} of most circuits (of {len(args['circuits'])}): {common}"


ANALYSIS = Analysis(
    name="circuit_reuse",
    question="do circuits of different tasks and policies use the same edges and heads?",
    parameters=CircuitReuse,
    find=find,
    cost=cost,
    show=show,
    needs_model=False,
    completed=completed,
)
