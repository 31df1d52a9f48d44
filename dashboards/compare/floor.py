"""The noise floor of a pair: what heads differ by when the base is computed otherwise (`analyse fidelity`)."""

from __future__ import annotations

from typing import Any

from sparselens.dashboards.verdict import number

FLOOR_OF_HEADS = """
SELECT metric, layer, head, value, n, json_extract_string(params, '$.noise') AS what
FROM head_scores
WHERE run_id = $b AND metric LIKE 'noise_write_error%' AND head IS NOT NULL AND $scope = 'end_to_end'
  AND json_extract_string(params, '$.base_run') = $a
  AND rows = CASE WHEN $rows LIKE 'span:%' THEN $rows ELSE 'all' END
QUALIFY row_number() OVER (PARTITION BY metric, layer, head ORDER BY analysis_id DESC) = 1
"""
"""Of the newest analysis. The base drops nothing, so affected rows are held against the floor of all rows."""

FLOOR = """
WITH floor AS ({floor}), heads AS (
  SELECT layer, head, avg(write_error) AS write_error FROM diffs
  WHERE run_a = $a AND run_b = $b AND scope = $scope AND rows = $rows AND ($over = 'all' OR prompt_id = $prompt)
  GROUP BY layer, head
)
SELECT f.metric = 'noise_write_error' AS ringed, any_value(f.what) AS what,
       max(f.n) AS n_prompts, median(f.value) AS median, max(f.value) AS largest,
       count(*) FILTER (WHERE h.write_error <= f.value) AS under, count(h.write_error) AS heads
FROM floor f LEFT JOIN heads h USING (layer, head) GROUP BY f.metric ORDER BY f.metric
""".replace("{floor}", FLOOR_OF_HEADS.strip())


def floor_lines(rows: list[dict[str, Any]]) -> list[str]:
    """One line for each kind of floor: what was compared, its size over heads, how many heads do not exceed it."""
    return [
        f"noise floor ({row['what']}; {row['n_prompts']} prompts): median write_error {number(row['median'])}, "
        f"largest {number(row['largest'])}; heads at or under theirs{' (ringed)' if row['ringed'] else ''}: "
        f"{row['under']} of {row['heads']}"
        for row in rows
    ]
