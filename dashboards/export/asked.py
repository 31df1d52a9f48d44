"""What a figure is asked of: runs, prompt, head and metric by the names people use, held against the trace.

The pages replace what a trace does not have and say so. Here it is an error that says what there is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sparselens.analyses.runs import find_run
from sparselens.dashboards.choice import PROMPTS, SCOPES, Settled, over, parents, settle
from sparselens.dashboards.heads.score import Score, rows_there, scores, whose
from sparselens.dashboards.metric import DIFF_METRICS
from sparselens.dashboards.query import Source
from sparselens.dashboards.selection import CHOICES, Selection

LISTED = 12
HEAD = re.compile(r"L(\d{1,4})H(\d{1,4})")


def asked(source: Source, a: str, b: str = "", **fields: Any) -> Settled:
    """The settled selection of a pair (or of A alone) with these fields of `Selection`; `head` is a name, `L18H6`.

    Raises ValueError that names what there is, when a run, prompt, head, metric or choice is not there.
    """
    run_a = run_named(source, a)["run_id"]
    run_b = run_named(source, b)["run_id"] if b else ""
    if run_b == run_a:
        raise ValueError(f"{a!r} and {b!r} are the same run: give two")
    fields = {name: value for name, value in fields.items() if value not in {None, ""}}
    head = fields.pop("head", "")
    layer, number = _head(head) if head else (None, None)
    if "prompt" in fields:
        fields["prompt"] = prompt_named(source, run_a, run_b, fields["prompt"])
    for name in CHOICES.keys() & fields.keys():
        member(name, fields[name], CHOICES[name])
    if "metric" in fields:
        member("metric", fields["metric"], DIFF_METRICS)
    kinds = over(source, run_a, run_b) if run_b else {}
    if run_b and "scope" in fields:
        member("scope", fields["scope"], list(kinds) or list(SCOPES))
    if run_b and "rows" in fields and kinds:
        member("rows", fields["rows"], kinds.get(fields.get("scope", next(iter(kinds))), []))
    settled = settle(source, Selection(a=run_a, b=run_b, layer=layer, head=number, **fields), [])
    if head and settled.selection.head_name != head:
        layers, heads = settled.shape
        raise ValueError(
            f"no head {head}: this run has {layers} layers of {heads} heads, L0H0 to L{layers - 1}H{heads - 1}"
        )
    return settled if run_b else _alone(source, settled, fields.get("prompt", ""), fields.get("rows", ""))


def _alone(source: Source, settled: Settled, prompt: str, rows: str) -> Settled:
    """The selection of one run: without a second one, over rows that its statistics have."""
    prompts = [row["prompt_id"] for row in source.records(PROMPTS, a=settled.selection.a, b=None)]
    chosen = replace(settled.selection, b="", prompt=prompt or (prompts or [""])[0])
    there = rows_there(source, chosen)
    if rows:
        member("rows", rows, there)
    first = next((name for name in ("span:answer", "affected", "all") if name in there), "all")
    return replace(settled, selection=replace(chosen, rows=rows or first), prompts=prompts)


def run_named(source: Source, name: str) -> dict[str, Any]:
    """The `runs` row of a captured run by id, beginning of the id, name or policy; ValueError lists what there is."""
    row: dict[str, Any] = source.through(lambda connection: find_run(connection, name))
    if row["kind"] != "capture":
        raise ValueError(f"{name!r} is a run of {row['kind']}: figures are of captured runs")
    return row


def base_of(source: Source, run: dict[str, Any]) -> str:
    """The id of the run that this one was captured against, an empty text where there is none."""
    known = {row["run_id"] for row in source.records("SELECT run_id FROM runs WHERE kind = 'capture'")}
    return next((parent for parent in parents(run) if parent in known), "")


def prompt_named(source: Source, a: str, b: str, name: str) -> str:
    """The id of a prompt that both runs have, by id, its beginning, or name; ValueError lists the prompts."""
    there = source.records(PROMPTS, a=a, b=b or None)
    found = [row for row in there if name in {row["prompt_id"], row["name"]}]
    found = found or [row for row in there if len(name) >= 6 and row["prompt_id"].startswith(name)]
    if len({row["prompt_id"] for row in found}) > 1:
        ids = ", ".join(row["prompt_id"] for row in found[:LISTED])
        raise ValueError(f"{len(found)} prompts are called {name!r}: give an id ({ids})")
    if not found:
        raise ValueError(
            f"no prompt {name!r} in these runs; they have {listed([_label(row) for row in there])}"
        )
    return str(found[0]["prompt_id"])


def score_named(source: Source, settled: Settled, name: str, side: str = "") -> tuple[Score, str]:
    """The score of that name (`head_scores.retrieval`, or `retrieval`) and whose number is meant.

    Raises ValueError that lists the scores, or the sides that this one has.
    """
    there = scores(source, settled.selection.a, settled.selection.b)
    found = there.get(name) or next((score for score in there.values() if score.metric == name), None)
    if found is None:
        if not there:
            raise ValueError("no numbers about heads are stored for these runs: capture them with all probes")
        raise ValueError(f"no score {name!r} of these runs; they have {listed(list(there), most=60)}")
    if side:
        member("side", side, found.sides)
    return found, side or whose(found, "")


def member(kind: str, name: Any, there: Sequence[str]) -> None:
    """Raise ValueError that lists what there is, unless the name is among it."""
    if name not in there:
        raise ValueError(f"no {kind} {str(name)[:60]!r}; there are {listed(list(there))}")


def listed(names: Sequence[str], most: int = LISTED) -> str:
    """Names as a list in a sentence, the first of many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) + more) or "none"


def _label(row: dict[str, Any]) -> str:
    return str(row["name"] or row["prompt_id"])


def _head(name: str) -> tuple[int, int]:
    found = HEAD.fullmatch(name)
    if found is None:
        raise ValueError(f"{name[:20]!r} is not a head; heads are written L18H6")
    return int(found[1]), int(found[2])
