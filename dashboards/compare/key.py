"""The keys one head reads from some query rows: what the base read there and what the policy dropped."""

from __future__ import annotations

from typing import Any

from dash import html

from sparselens.dashboards.colour import level
from sparselens.dashboards.verdict import number

KEY_ROWS = """
WITH span AS (SELECT start, stop FROM spans WHERE prompt_id = $prompt AND name = replace($rows, 'span:', '')),
stored AS (
  SELECT DISTINCT q_pos FROM edges
  WHERE run_id = $b AND prompt_id = $prompt AND layer = $layer AND head = $head AND ($q IS NULL OR q_pos = $q)
)
SELECT q_pos, r.unstored_mass, r.write_error
FROM stored LEFT JOIN span ON true
LEFT JOIN (SELECT q_pos, unstored_mass, write_error FROM row_stats
           WHERE run_id = $b AND prompt_id = $prompt AND pattern = 'executed'
             AND layer = $layer AND head = $head) r
  USING (q_pos)
WHERE $q IS NOT NULL OR span.start IS NULL
   OR ($rows = 'span:answer' AND q_pos + 1 >= span.start AND q_pos + 1 < span.stop)
   OR ($rows <> 'span:answer' AND q_pos >= span.start AND q_pos < span.stop)
ORDER BY CASE WHEN span.start IS NULL THEN -coalesce(r.write_error, 0) ELSE q_pos END LIMIT $most
"""
BRUSH_ROWS = """
SELECT q_pos, any_value(r.unstored_mass) AS unstored_mass, any_value(r.write_error) AS write_error,
       count(*) OVER () AS n_rows
FROM edges e LEFT JOIN (SELECT * FROM row_stats WHERE run_id = $b AND prompt_id = $prompt AND pattern = 'executed'
                        AND layer = $layer AND head = $head AND q_pos >= $first AND q_pos < $stop) r
  USING (q_pos)
WHERE e.run_id = $b AND e.prompt_id = $prompt AND e.layer = $layer AND e.head = $head
  AND q_pos >= $first AND q_pos < $stop
GROUP BY q_pos ORDER BY any_value(r.write_error) DESC NULLS LAST, q_pos LIMIT $most
"""
"""Of brushed rows those that changed most; `n_rows` counts all that have stored keys."""
KEYS = """
SELECT e.q_pos, e.k_pos, e.p, e.p_base, e.kept, t.text,
       row_number() OVER (PARTITION BY e.q_pos ORDER BY coalesce(e.p_base, e.p) DESC, e.k_pos) AS place
FROM edges e LEFT JOIN tokens t ON t.prompt_id = e.prompt_id AND t.pos = e.k_pos
WHERE e.run_id = $b AND e.prompt_id = $prompt AND e.layer = $layer AND e.head = $head
  AND e.q_pos IN (SELECT unnest($queries))
QUALIFY place <= $most ORDER BY e.q_pos, place
"""
QUERIES = """
SELECT t.pos, t.text, n.text AS next FROM tokens t
LEFT JOIN tokens n ON n.prompt_id = t.prompt_id AND n.pos = t.pos + 1
WHERE t.prompt_id = $prompt AND t.pos IN (SELECT unnest($queries))
"""
MOST_ROWS = 6
MOST_KEYS = 24


def keys_figure(
    rows: list[dict[str, Any]], keys: list[dict[str, Any]], queries: dict[int, dict[str, Any]]
) -> list[Any]:
    """Of each query row the stored keys as chips: by mass in the base, dropped ones struck through."""
    drawn = []
    for row in rows:
        at = row["q_pos"]
        query = queries.get(at, {})
        chips = [_chip(key) for key in keys if key["q_pos"] == at]
        follows = [" → predicts ", html.Code(shown(query["next"]))] if query.get("next") is not None else []
        left_out = number(row["unstored_mass"])
        drawn.append(
            html.Div(
                [
                    html.H3([f"Query {at} ", html.Code(shown(query.get("text"))), *follows]),
                    html.P(
                        f"Left out (executed mass on keys not stored): {left_out}. "
                        f"Write error of this row: {number(row['write_error'])}.",
                        className="note",
                    ),
                    html.Ul(chips, className="chips"),
                ],
                className="key-row",
            )
        )
    return drawn


def shown(text: str | None) -> str:
    """A token with its white space visible."""
    return "▯" if text is None else text.replace(" ", "·").replace("\n", "↵").replace("\t", "⇥") or "∅"


def _chip(key: dict[str, Any]) -> Any:
    dropped = key["kept"] is False
    base = key["p_base"]
    step = level((base if base is not None else key["p"]) ** 0.5, 0, 1) or 0
    said = f"key {key['k_pos']}: base {number(base)}, run {number(key['p'])}" + (
        ", dropped" if dropped else ""
    )
    text = shown(key["text"])
    return html.Li(
        [
            html.Span(str(key["k_pos"]), className="pos"),
            html.Del(text, className="word") if dropped else html.Span(text, className="word"),
            html.Span(f"{number(base)} → {number(key['p'])}", className="mass"),
        ],
        className="chip cut" if dropped else "chip",
        title=said,
        style={"--step": f"var(--seq-{step})"},
    )
