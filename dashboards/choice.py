"""What is looked at when the URL does not say: runs, prompt, rows and head chosen from the trace."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from sparselens.dashboards.metric import DIFF_METRICS
from sparselens.dashboards.query import Source, capture_command
from sparselens.dashboards.selection import Selection

RUNS = """
SELECT run_id, coalesce(name, run_id) AS name, kind, parents, model, coalesce(policy, '') AS policy, status,
       n_prompts, coalesce(policy, '') LIKE 'dense%' AS is_dense
FROM runs WHERE run_id IN (SELECT run_id FROM run_prompts) AND kind = 'capture'
ORDER BY created_at, run_id
"""
PROMPTS = """
SELECT p.prompt_id, p.name, p.prompt_set, p.grp, p.n_tokens FROM prompts p
WHERE p.prompt_id IN (SELECT prompt_id FROM run_prompts WHERE run_id = $a)
  AND ($b IS NULL OR p.prompt_id IN (SELECT prompt_id FROM run_prompts WHERE run_id = $b))
ORDER BY p.prompt_set, p.name, p.prompt_id
"""
SHAPE = """
SELECT coalesce(max(layer) + 1, 0) AS layers, coalesce(max(head) + 1, 0) AS heads,
       (SELECT TRY_CAST(json_extract_string(extra, '$.n_kv_heads') AS INTEGER) FROM runs WHERE run_id = $a)
         AS kv_heads
FROM head_stats WHERE run_id = $a
"""
DIFF_KINDS = """
SELECT scope, rows, count(*) AS n FROM diffs WHERE run_a = $a AND run_b = $b
GROUP BY ALL ORDER BY scope, rows
"""
WORST_HEAD = """
SELECT layer, head FROM diffs
WHERE run_a = $a AND run_b = $b AND scope = $scope AND rows = $rows
  AND ($over = 'all' OR prompt_id = $prompt)
GROUP BY layer, head ORDER BY avg(write_error) DESC NULLS LAST, layer, head LIMIT 1
"""
NO_RUN = "This trace has no captured run yet."
SCOPES = {
    "end_to_end": "as it ran: includes what earlier layers changed",
    "local_mask": "the run's own mask put on the base's q and k: what this head alone loses",
    "local_policy": "the policy run again on the base's q and k",
}


@dataclass(frozen=True)
class Settled:
    """A selection in which everything that the trace allows is chosen, and the lists it was chosen from."""

    selection: Selection
    notices: list[str]
    prompts: list[str] = field(default_factory=list)
    shape: tuple[int, int] = (0, 0)
    group: int = 0
    advice: str = ""


def settle(source: Source, selection: Selection, notices: list[str]) -> Settled:
    """Fill what is not chosen, replace what the trace does not have and say so.

    Raises:
        SourceError: when the trace cannot be read at all.

    """
    runs = source.records(RUNS)
    if not runs:
        lines = [*notices, NO_RUN]
        return Settled(selection, lines, advice=capture_command(source.path))
    a, b, notices = _pair(runs, selection, notices)
    prompts = [row["prompt_id"] for row in source.records(PROMPTS, a=a, b=b or None)]
    prompt = _known("prompt", selection.prompt, prompts, notices)
    kinds = over(source, a, b)
    scope = _known("scope", selection.scope, list(kinds), notices) or selection.scope
    rows = kinds.get(scope, [])
    chosen = replace(
        selection,
        a=a,
        b=b,
        prompt=prompt,
        scope=scope,
        rows=_known("rows", selection.rows, rows, notices) or selection.rows,
        metric=_known("metric", selection.metric, list(DIFF_METRICS), notices),
    )
    size = source.first(SHAPE, a=a)
    shape = (size["layers"], size["heads"])
    group = size["heads"] // size["kv_heads"] if size["kv_heads"] else 0
    return Settled(_with_head(source, chosen, shape, notices), notices, prompts, shape, group)


def lists(source: Source, selection: Selection) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The runs there are and the prompts that both chosen runs have."""
    return source.records(RUNS), source.records(PROMPTS, a=selection.a, b=selection.b or None)


def over(source: Source, a: str, b: str) -> dict[str, list[str]]:
    """The rows that differences of a pair are stored over, by scope; both in the order of the pickers."""
    kinds = source.records(DIFF_KINDS, a=a, b=b)
    return {
        scope: sorted((kind["rows"] for kind in kinds if kind["scope"] == scope), key=_row_order)
        for scope in SCOPES
        if any(kind["scope"] == scope for kind in kinds)
    }


def _pair(runs: list[dict[str, Any]], selection: Selection, notices: list[str]) -> tuple[str, str, list[str]]:
    """Base and run: as asked, else a run and its parent, else the first and the last."""
    notices = list(notices)
    known = {run["run_id"]: run for run in runs} | {run["name"]: run for run in runs}
    for name in ("a", "b"):
        asked = getattr(selection, name)
        if asked and asked not in known:
            notices.append(f"There is no run {asked[:60]!r} in this trace; another was chosen.")
    a = known.get(selection.a, {}).get("run_id", "")
    b = known.get(selection.b, {}).get("run_id", "")
    if not a and b:
        a = next((parent for parent in parents(known[b]) if parent in known and parent != b), "")
    if not a:
        a = next((run["run_id"] for run in runs if run["is_dense"] and run["run_id"] != b), "")
    a = a or next((run["run_id"] for run in runs if run["run_id"] != b), b)
    if not b and not (selection.a and not selection.b and len(runs) == 1):
        others = [run["run_id"] for run in runs if run["run_id"] != a]
        children = [run["run_id"] for run in runs if a in parents(run) and run["run_id"] != a]
        b = (children or others or [""])[-1]
    return a, "" if b == a else b, notices


def parents(run: dict[str, Any]) -> list[str]:
    """Run ids a run was captured against; the column is a list, or a text with separators."""
    value = run.get("parents")
    if value is None:
        return []
    return value.replace(",", " ").split() if isinstance(value, str) else [str(each) for each in value]


def _known(name: str, asked: str, there_are: list[str], notices: list[str]) -> str:
    if asked and asked not in there_are and there_are:
        notices.append(f"There is no {name} {asked[:60]!r} for these runs; {there_are[0]!r} was chosen.")
    return asked if asked in there_are else (there_are[0] if there_are else "")


def _row_order(rows: str) -> tuple[int, str]:
    order = {"span:answer": 0, "affected": 1, "all": 2}
    return order.get(rows, 3), rows


def _with_head(source: Source, chosen: Selection, shape: tuple[int, int], notices: list[str]) -> Selection:
    layers, heads = shape
    layer, head = chosen.layer, chosen.head
    if layer is not None and head is not None and layer < layers and head < heads:
        return chosen
    if layer is not None and head is not None:
        notices.append(
            f"There is no head {chosen.head_name}: the model has {layers} layers of {heads} heads."
        )
    worst = source.first(
        WORST_HEAD,
        a=chosen.a,
        b=chosen.b,
        scope=chosen.scope,
        rows=chosen.rows,
        over=chosen.over,
        prompt=chosen.prompt,
    )
    return replace(chosen, layer=worst.get("layer", 0), head=worst.get("head", 0))
