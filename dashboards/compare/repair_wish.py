"""Which heads are to be given back, and the command for it, from the selection and what the trace says of the runs."""

from __future__ import annotations

from typing import Any

from sparselens.analyses.cause.command import PASSES, Wish, cost, named, sets_in
from sparselens.dashboards.compare.change import change
from sparselens.dashboards.query import Source, SourceError, records
from sparselens.dashboards.selection import Heads, Selection

TOPS = (4, 8, 17)
MOST = 100  # heads that are given back at once
RUNS = """
SELECT b.run_id, b.model, b.policy, b.policy_source, b.prompt_set, a.policy AS base, a.policy_source AS base_source,
       a.model AS base_model, b.dtype, b.n_tokens / nullif(b.seconds, 0) AS rate
FROM runs b JOIN runs a ON a.run_id = $a WHERE b.run_id = $b
"""
ANSWERED = """
SELECT p.prompt_id, coalesce(p.prompt_set, '') AS prompt_set, p.n_tokens, p.bos_mode
FROM prompts p JOIN spans s ON s.prompt_id = p.prompt_id AND s.name = 'answer' AND s.stop > s.start
WHERE p.prompt_id IN (SELECT prompt_id FROM run_prompts WHERE run_id = $b)
ORDER BY p.prompt_id = $prompt DESC, p.prompt_set, p.prompt_id
"""


def top_heads(source: Source, selection: Selection) -> list[str]:
    """The heads that write most otherwise over the selection's rows, the worst first; empty without `write_error`."""
    try:
        found = change(source, selection)
    except SourceError:
        return []
    if "write_error" not in found.metrics:
        return []
    ranked = found.frame.dropna(subset=["write_error"])
    rows = records(ranked.nlargest(max(TOPS), "write_error")[["head_name"]])
    return [row["head_name"] for row in rows]


def wish(source: Source, selection: Selection) -> tuple[Wish, str]:
    """The restore of the picked heads under B's policy on B's prompts, and what it costs."""
    runs = source.first(RUNS, a=selection.a, b=selection.b)
    answered = source.records(ANSWERED, b=selection.b, prompt=selection.prompt)
    own = answered[0]["prompt_set"] if answered else ""
    calls = {named(call): call for call in sets_in(runs.get("prompt_set") or "")}
    lengths = [row["n_tokens"] for row in answered if row["prompt_set"] == own]
    made = Wish(
        model=runs.get("model") or "",
        policy=runs.get("policy") or "",
        base=runs.get("base") or "",
        prompts=calls.get(own, ""),
        heads=tuple((selection.picked or Heads(())).names),
        policy_source=runs.get("policy_source") or runs.get("base_source"),
        dtype=runs.get("dtype"),
        bos=answered[0]["bos_mode"] if answered else None,
    )
    return made, cost(lengths, runs.get("rate")) if lengths else f"{PASSES} passes a prompt"


def refusal(asked: Wish, shape: tuple[int, int]) -> str:
    """Why the server does not start it; empty where it does. `shape`: layers and heads of the model."""
    places = Heads.parse(",".join(asked.heads)).places if asked.heads else ()
    strange = [f"L{layer}H{head}" for layer, head in places if layer >= shape[0] or head >= shape[1]]
    if strange:
        return f"{strange[0]} is no head of this model: it has {shape[0]} layers of {shape[1]} heads"
    if len(places) > MOST or 2 * len(places) > shape[0] * shape[1]:
        return f"{len(places)} heads are too many: as many random ones are drawn beside them"
    return asked.refused()


def said(row: dict[str, Any]) -> str:
    """A run's model and policy in a few words."""
    return " · ".join(str(row[name]) for name in ("model", "policy") if row.get(name))
