"""Circuits of the trace: which there are, which two are looked at, and why a task has none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dash import html

from sparselens.dashboards.query import Source
from sparselens.dashboards.selection import Selection
from sparselens.dashboards.verdict import number, percent

CIRCUITS = """
SELECT c.circuit, c.task, c.policy, c.model, c.prompts, c.metric, c.asked, c.n_edges, c.n_heads, c.n_mlps,
       c.all_edges, c.stored, c.unstored, c.faithfulness, c.ci_low, c.ci_high, c.sufficient, c.whole, c.empty,
       c.accuracy, c.chance, c.n_found, c.n, c.n_clusters, c.analysis_id,
       CASE WHEN json_valid(r.extra) THEN json_extract_string(r.extra, '$.base_circuit') END AS base_circuit
FROM circuits c LEFT JOIN runs r ON r.run_id = c.analysis_id
ORDER BY c.prompts, base_circuit IS NOT NULL, c.policy, r.created_at, c.circuit
"""
WITHOUT = """
SELECT run_id, status, coalesce(policy, json_extract_string(args, '$.policy')) AS policy,
       coalesce(prompt_set, json_extract_string(args, '$.task') || ', n=' || json_extract_string(args, '$.n')
         || ', filler=' || json_extract_string(args, '$.filler')) AS prompts,
       json_extract_string(extra, '$.applicable') AS applicable,
       TRY_CAST(json_extract_string(extra, '$.accuracy') AS DOUBLE) AS accuracy,
       TRY_CAST(json_extract_string(extra, '$.chance') AS DOUBLE) AS chance,
       TRY_CAST(json_extract_string(extra, '$.needed') AS DOUBLE) AS needed
FROM (SELECT run_id, status, policy, prompt_set, created_at, CASE WHEN json_valid(args) THEN args END AS args,
             CASE WHEN json_valid(extra) THEN extra END AS extra
      FROM runs WHERE name = 'circuit' AND kind = 'analysis')
WHERE run_id NOT IN (SELECT analysis_id FROM circuits_history WHERE analysis_id IS NOT NULL)
ORDER BY created_at, run_id
"""
NONE = "none"
"""What `circuit_b` is where one circuit is looked at alone."""
LABEL = 60

Circuits = dict[str, dict[str, Any]]


def circuits(source: Source) -> Circuits:
    """The circuits of the trace by id: those of a task together, those of a base first."""
    return {row["circuit"]: row for row in source.records(CIRCUITS) if row["circuit"]}


def whole(rows: Sequence[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    """Rows whose columns of these names are whole numbers or None: a frame with NULLs makes them floats."""
    return [
        {**row, **{name: None if row[name] is None else int(row[name]) for name in names}} for row in rows
    ]


def compared(source: Source, selection: Selection) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """A's circuit and B's, None where A's is looked at alone; A's is empty where there is none."""
    found = circuits(source)
    return found.get(selection.circuit_a, {}), found.get(selection.circuit_b)


def label(circuit: dict[str, Any]) -> str:
    """A circuit in one line."""
    return f"{circuit['prompts'] or circuit['task']} · {circuit['policy']} · {circuit['circuit'][:6]}"


def same(circuit: dict[str, Any], run: dict[str, Any]) -> bool:
    """Whether a circuit was found under the policy of a run of the same model."""
    return bool(circuit["policy"] == run["policy"] and circuit["model"] == run["model"])


def off_pair(found: Circuits, runs: dict[str, dict[str, Any]], selection: Selection) -> str:
    """A line where the circuits are not those of runs A and B, empty where they are."""
    sides = (("A", selection.a, selection.circuit_a), ("B", selection.b, selection.circuit_b))
    wrong = [
        f"{side} here is the circuit under {found[circuit]['policy']}, run {side} ran {runs[run]['policy']}"
        for side, run, circuit in sides
        if circuit in found and run in runs and not same(found[circuit], runs[run])
    ]
    return "; ".join(wrong)


def command(source: Source, policy: str = "") -> str:
    """The command that finds circuits."""
    more = f' --policy "{policy}"' if policy else ""
    task = "circuit(task=ioi,n=16,filler=72)" if policy else "circuit(task=ioi,n=16)"
    return f'sparselens analyse "{task}" --model smollm2-135m --trace {source.path}{more}'


def table(found: Circuits, without: Sequence[dict[str, Any]], selection: Selection) -> Any:
    """A row a circuit, with buttons that make it A or B, and a row a question that has none."""
    names = ("", "task and prompts", "policy", "carries", "edges", "heads, MLPs", "answers", "whole → ∅", "n")
    about = {
        "carries": "faithfulness on the test prompts: (F(C) − F(∅)) ÷ (F(M) − F(∅)), with a 95 % bootstrap over "
        "clusters",
        "edges": "edges of the circuit, of all edges of the model's graph",
        "answers": "share of all prompts that the model answers right under the policy; in brackets chance",
        "whole → ∅": "mean metric of the whole model, and with everything ablated",
        "n": "test prompts in clusters",
    }
    top = [
        html.Th(html.Abbr(name, title=about[name]) if name in about else name, scope="col") for name in names
    ]
    body = [_row(row, selection) for row in found.values()] + [_lacking(row) for row in without]
    return html.Table([html.Thead(html.Tr(top)), html.Tbody(body)], className="numbers wide circuits")


def _row(row: dict[str, Any], selection: Selection) -> Any:
    return html.Tr(
        [
            html.Td([_use(row, "a", selection), " ", _use(row, "b", selection)]),
            html.Th(row["prompts"] or row["task"], scope="row", className="mono", title=row["metric"]),
            html.Td(row["policy"], className="mono", title=f"{row['policy']}, circuit {row['circuit']}"),
            html.Td(
                [
                    number(row["faithfulness"], 2),
                    html.Small(
                        f"[{number(row['ci_low'], 2)}, {number(row['ci_high'], 2)}]", className="interval"
                    ),
                    None if row["sufficient"] else html.Small("less than asked", className="interval"),
                ]
            ),
            html.Td(_counted(row)),
            html.Td(f"{row['n_heads']}, {row['n_mlps']}"),
            html.Td(f"{percent(row['accuracy'])} ({percent(row['chance'])})"),
            html.Td(f"{number(row['whole'], 2)} → {number(row['empty'], 2)}"),
            html.Td(f"{row['n']} in {row['n_clusters']}"),
        ]
    )


def _counted(row: dict[str, Any]) -> str:
    counts = [row["n_edges"], row["all_edges"]]
    return " of ".join("–" if each is None else f"{each:,}" for each in counts)


def _use(row: dict[str, Any], side: str, selection: Selection) -> Any:
    """A button that makes a circuit A or B; B goes where B becomes A."""
    mine = {"a": selection.circuit_a, "b": selection.circuit_b}
    on = mine[side] == row["circuit"]
    other = "b" if side == "a" else "a"
    after = {side: row["circuit"], other: mine[side] if mine[other] == row["circuit"] else mine[other]}
    if not after["a"] or after["a"] == NONE:
        after["a"] = row["circuit"]
    return html.Button(
        side.upper(),
        type="button",
        className="badge on" if on else "badge",
        **{
            "data-go": _json({f"circuit_{name}": value for name, value in after.items()}),
            "aria-pressed": str(on).lower(),
            "aria-label": f"Use {label(row)[:LABEL]} as {side.upper()}",
        },
    )


def _json(changes: dict[str, str]) -> str:
    return json.dumps({**changes, "task": None, "edge": None})


def _lacking(row: dict[str, Any]) -> Any:
    """A question that was asked and has no circuit: not applicable, or not yet answered."""
    if row["applicable"] == "false":
        said = (
            f"not applicable on this model: the base answers {percent(row['accuracy'])}, chance "
            f"{percent(row['chance'])}, needed {percent(row['needed'])}; no circuit was searched"
        )
    else:
        said = f"no circuit yet: the analysis is {row['status'] or 'unfinished'}"
    return html.Tr(
        [
            html.Td(""),
            html.Th(row["prompts"] or "–", scope="row", className="mono"),
            html.Td(row["policy"] or "–", className="mono"),
            html.Td(said, colSpan=6, className="note left"),
        ]
    )
