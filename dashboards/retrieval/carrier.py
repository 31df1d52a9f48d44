"""The heads that carried an answer: who read its place in the needle from the rows that predict it."""

from __future__ import annotations

from typing import Any

from sparselens.dashboards.query import Source
from sparselens.dashboards.selection import Selection
from sparselens.dashboards.verdict import number

ASKED = """
SELECT p.prompt_id, a.start - 1 AS q_start, a.stop - 1 AS q_stop,
       coalesce(TRY_CAST(json_extract_string(p.metadata, '$.value[0]') AS INTEGER), n.start) AS k_start,
       coalesce(TRY_CAST(json_extract_string(p.metadata, '$.value[1]') AS INTEGER), n.stop) AS k_stop
FROM prompts p JOIN spans n ON n.prompt_id = p.prompt_id AND n.name = 'needle'
JOIN spans a ON a.prompt_id = p.prompt_id AND a.name = 'answer'
WHERE a.stop > a.start AND a.start > 0 AND CASE WHEN $over = 'all' THEN
    p.prompt_id IN (SELECT prompt_id FROM run_prompts WHERE run_id = $a)
    AND ($b IS NULL OR p.prompt_id IN (SELECT prompt_id FROM run_prompts WHERE run_id = $b))
  ELSE p.prompt_id = $prompt END
ORDER BY p.prompt_id
"""
CARRIERS = """
WITH asked AS (
  SELECT unnest($prompt_id) AS prompt_id, unnest($q_start) AS q_start, unnest($q_stop) AS q_stop,
         unnest($k_start) AS k_start, unnest($k_stop) AS k_stop
), near AS MATERIALIZED (
  SELECT run_id, prompt_id, layer, head, q_pos, k_pos, p FROM edges
  WHERE run_id IN ($a, $b) AND prompt_id >= list_min($prompt_id) AND prompt_id <= list_max($prompt_id)
    AND q_pos >= list_min($q_start) AND q_pos < list_max($q_stop)
    AND k_pos >= list_min($k_start) AND k_pos < list_max($k_stop) AND list_contains($prompt_id, prompt_id)
), read AS (
  SELECT e.run_id, e.layer, e.head, sum(e.p / (q.q_stop - q.q_start)) / len($prompt_id) AS mass
  FROM near e JOIN asked q USING (prompt_id)
  WHERE e.q_pos >= q.q_start AND e.q_pos < q.q_stop AND e.k_pos >= q.k_start AND e.k_pos < q.k_stop
  GROUP BY ALL
), mass AS (
  SELECT layer, head, max(mass) FILTER (run_id = $a) AS mass_a, max(mass) FILTER (run_id = $b) AS mass_b
  FROM read GROUP BY ALL
), error AS (
  SELECT layer, head, avg(write_error) AS write_error, avg(kept_mass_nosink) AS kept FROM diffs
  WHERE run_a = $a AND run_b = $b AND scope = $scope AND rows = 'span:answer'
    AND list_contains($prompt_id, prompt_id)
  GROUP BY ALL
), retrieval AS (
  SELECT layer, head, value AS retrieval, ci_low, ci_high, n FROM head_scores
  WHERE run_id IN ($a, $b) AND metric = 'retrieval' AND head IS NOT NULL
    AND json_extract_string(params, '$.fold') IS NULL
  QUALIFY row_number() OVER (PARTITION BY layer, head ORDER BY run_id = $a DESC, analysis_id DESC) = 1
)
SELECT layer, head, 'L' || layer || 'H' || head AS head_name, coalesce(mass_a, 0) AS mass_a,
       CASE WHEN $b IS NOT NULL THEN coalesce(mass_b, 0) END AS mass_b, write_error, kept, retrieval, ci_low, ci_high, n
FROM mass FULL JOIN error USING (layer, head) FULL JOIN retrieval USING (layer, head)
ORDER BY greatest(mass_a, mass_b) DESC, write_error DESC NULLS LAST, layer, head LIMIT $most
"""
MOST = 40
RETRIEVAL_ABOUT = """
SELECT any_value(definition) AS definition, any_value(prompt_set) AS prompt_set, max(n) AS n,
       CASE WHEN run_id = $a THEN 'A' ELSE 'B' END AS owner
FROM head_scores
WHERE run_id IN ($a, $b) AND metric = 'retrieval' AND head IS NOT NULL
  AND json_extract_string(params, '$.fold') IS NULL
GROUP BY run_id ORDER BY run_id = $a DESC
"""
NUMERIC = {"type": "rightAligned", "cellRenderer": "Number"}
COLUMNS: list[dict[str, Any]] = [
    {"field": "head_name", "headerName": "Head", "cellRenderer": "HeadLink", "width": 76, "pinned": "left"},
    {"field": "mass_a", "headerName": "reads it in A", "width": 108, **NUMERIC,
     "headerTooltip": "attention to the answer's place in the needle, mean over the rows that predict the answer; "
     "stored keys only, so at least this"},
    {"field": "mass_b", "headerName": "in B", "width": 70, **NUMERIC, "headerTooltip": "the same in B"},
    {"field": "write_error", "headerName": "write error", "width": 96, **NUMERIC,
     "headerTooltip": "how far what the head writes on these rows is from A, ÷ the layer's mean ‖attention output‖"},
    {"field": "kept", "headerName": "kept mass", "width": 92, **NUMERIC,
     "headerTooltip": "share of A's mass on these rows that B keeps, the first token left out"},
    {"field": "retrieval", "headerName": "retrieval", "width": 84, **NUMERIC,
     "headerTooltip": "retrieval score of the head under A's policy (else B's), over other needles (docs/roles.md)"},
    {"field": "interval", "headerName": "95 %", "width": 124, "type": "rightAligned", "sortable": False},
    {"field": "roles", "headerName": "Roles", "minWidth": 120, "flex": 1, "tooltipField": "roles"},
]  # fmt: skip


def carriers(source: Source, selection: Selection) -> list[dict[str, Any]]:
    """The heads of the selected prompt (or of all needles), by the mass they put on the answer's place, in A or B."""
    pair = {"a": selection.a, "b": selection.b or None}
    asked = source.records(ASKED, over=selection.over, prompt=selection.prompt, **pair)
    if not asked:
        return []
    lists: dict[str, Any] = {name: [row[name] for row in asked] for name in asked[0]}
    return source.records(CARRIERS, scope=selection.scope, most=MOST, **pair, **lists)


def carrier_rows(rows: list[dict[str, Any]], named: dict[tuple[int, int], str]) -> list[dict[str, Any]]:
    """Rows of the table, with the interval of the retrieval score and the head's roles in words."""
    return [
        {
            **row,
            "interval": ""
            if row["ci_low"] is None
            else f"[{number(row['ci_low'])}, {number(row['ci_high'])}]",
            "roles": named.get((row["layer"], row["head"]), ""),
        }
        for row in rows
    ]
