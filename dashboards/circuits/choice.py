"""Which task, circuits, node and edge are looked at when the URL does not say."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from sparselens.dashboards.choice import NO_RUN
from sparselens.dashboards.circuits.circuit import NONE, Circuits, circuits, same
from sparselens.dashboards.circuits.panel import SIZES
from sparselens.dashboards.circuits.table import nodes
from sparselens.dashboards.query import Source
from sparselens.dashboards.selection import Selection

PAIR = "SELECT run_id, policy, model FROM runs WHERE run_id IN ($a, $b)"
THERE = """
SELECT count(*) AS n FROM circuit_edges
WHERE circuit IN ($a, $b) AND sender = $sender AND receiver = $receiver
"""
_OTHER_NODE = re.compile(r"M\d{1,4}|input|logits")


def run_pair(source: Source, selection: Selection) -> dict[str, dict[str, Any]]:
    """The captured runs A and B that have a policy, by id."""
    if not selection.a:
        return {}
    return {
        row["run_id"]: row
        for row in source.records(PAIR, a=selection.a, b=selection.b or None)
        if row["policy"]
    }


def settle(source: Source, selection: Selection, notices: list[str]) -> Selection:
    """The selection with a task and circuits that the trace has; circuits need no captured run."""
    if NO_RUN in notices:
        notices.remove(NO_RUN)
    found = circuits(source)
    if not found:
        return replace(selection, task="", circuit_a="", circuit_b="", edge="", node="")
    task, a, b = _chosen(found, run_pair(source, selection), selection, notices)
    size = selection.size
    if not 1 <= size <= SIZES[-1]:
        size = min(max(size, 1), SIZES[-1])
        notices.append(f"The graph shows 1 to {SIZES[-1]:,} edges of a circuit, not {selection.size:,}.")
    settled = replace(selection, task=task, circuit_a=a, circuit_b=b, size=size)
    settled = _with_head(source, settled)
    return replace(settled, node=_node(selection.node, notices), edge=_edge(source, settled, notices))


def _chosen(
    found: Circuits, runs: dict[str, dict[str, Any]], selection: Selection, notices: list[str]
) -> tuple[str, str, str]:
    """Task and circuits: as asked, else of the runs' policies."""
    a, b, task = selection.circuit_a, selection.circuit_b, selection.task
    known = {row["prompts"] for row in found.values()}
    for name, asked, there in (
        ("circuit", a, a in found),
        ("circuit", b, b in found or b == NONE),
        ("task", task, task in known),
    ):
        if asked and not there:
            notices.append(f"There is no {name} {asked[:60]!r} in this trace; another was chosen.")
    if a in found:
        task = found[a]["prompts"]
    elif task not in known:
        task = found[b]["prompts"] if b in found else first_task(found, runs)
    first, second = first_pair(found, task, runs, selection)
    a = a if a in found else first if first != b else next((each for each in found if each != b), first)
    if b in found and found[b]["model"] != found[a]["model"]:
        notices.append("B's circuit is of another model than A's: their nodes are not the same.")
        b = NONE
    if b not in found and b != NONE:
        b = second if second != a else first if first != a else NONE
    return task, a, NONE if b == a else b


def _with_head(source: Source, selection: Selection) -> Selection:
    """The selection with the head of largest score where none is chosen."""
    if selection.layer is not None and selection.head is not None:
        return selection
    b = None if selection.circuit_b == NONE else selection.circuit_b
    rows = nodes(source, {"a": selection.circuit_a, "b": b})
    best = next((row for row in rows if row["layer"] is not None and row["head"] is not None), None)
    return replace(selection, layer=best["layer"], head=best["head"]) if best else selection


def _node(asked: str, notices: list[str]) -> str:
    """A node that is not a head; heads are chosen by layer and head."""
    if asked and not _OTHER_NODE.fullmatch(asked):
        notices.append(f"There is no node {asked[:40]!r}; name `input`, `logits` or an MLP such as M3.")
        return ""
    return asked


def _edge(source: Source, selection: Selection, notices: list[str]) -> str:
    if not selection.edge:
        return ""
    sender, _, receiver = selection.edge.partition("~")
    there = source.first(
        THERE, a=selection.circuit_a, b=selection.circuit_b, sender=sender, receiver=receiver
    )
    if there.get("n"):
        return selection.edge
    notices.append(f"No edge {selection.edge[:60]!r} is stored for these circuits.")
    return ""


def first_pair(
    found: Circuits, task: str, runs: dict[str, dict[str, Any]], selection: Selection
) -> tuple[str, str]:
    """The circuits of a task to begin with: of the runs' policies, else the base's and one that has it as base."""
    there = [row for row in found.values() if row["prompts"] == task]

    def of_run(run: str) -> str:
        about = runs.get(run)
        return next((row["circuit"] for row in there if about and same(row, about)), "")

    a, b = of_run(selection.a), of_run(selection.b)
    if not a:
        base = found.get(b, {}).get("base_circuit")
        a = base if base in found and base != b else ""
    a = a or next((row["circuit"] for row in there if row["circuit"] != b), "")
    others = [row for row in there if row["circuit"] != a and row["model"] == found.get(a, {}).get("model")]
    b = b or next((row["circuit"] for row in others if row["base_circuit"] == a), "")
    b = b or next((row["circuit"] for row in others), "")
    return (a, b or NONE) if a else (b, NONE)


def first_task(found: Circuits, runs: dict[str, dict[str, Any]]) -> str:
    """The task to begin with: most circuits of the chosen runs' policies, then most circuits."""
    tasks = list(dict.fromkeys(row["prompts"] for row in found.values()))

    def order(task: str) -> tuple[int, int]:
        mine = [row for row in found.values() if row["prompts"] == task]
        return sum(any(same(row, run) for row in mine) for run in runs.values()), len(mine)

    return max(tasks, key=order, default="")
