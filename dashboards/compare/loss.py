"""The loss of base and run: one sentence, and every token of the prompt."""

from __future__ import annotations

from typing import Any

from dash import html

from sparselens.dashboards.colour import level
from sparselens.dashboards.query import records
from sparselens.dashboards.selection import Selection
from sparselens.dashboards.verdict import number, verdict

HEADLINE = """
WITH picked AS (
  SELECT DISTINCT prompt_id FROM predictions WHERE run_id = $a AND ($over = 'all' OR prompt_id = $prompt)
  INTERSECT SELECT DISTINCT prompt_id FROM predictions WHERE run_id = $b
), loss AS (
  SELECT n.run_id, n.prompt_id, avg(n.nll) AS nll,
         avg(n.nll) FILTER (WHERE n.pos >= s.start AND n.pos < s.stop) AS answer_nll
  FROM predictions n JOIN picked USING (prompt_id)
  LEFT JOIN spans s ON s.prompt_id = n.prompt_id AND s.name = 'answer'
  WHERE n.run_id IN ($a, $b) GROUP BY ALL
)
SELECT count(DISTINCT prompt_id) AS n_prompts,
       (SELECT avg(kl) FROM (SELECT avg(kl) AS kl FROM token_diffs JOIN picked USING (prompt_id)
        WHERE run_a = $a AND run_b = $b AND affected GROUP BY prompt_id)) AS affected_kl,
       avg(nll) FILTER (WHERE run_id = $a) AS nll_a, avg(nll) FILTER (WHERE run_id = $b) AS nll_b,
       avg(answer_nll) FILTER (WHERE run_id = $a) AS answer_a,
       avg(answer_nll) FILTER (WHERE run_id = $b) AS answer_b
FROM loss
"""
RUN = """
SELECT r.*, (SELECT avg(density) FROM head_stats h WHERE h.run_id = r.run_id AND h.pattern = 'executed'
             AND h.rows = 'all' AND ($over = 'all' OR h.prompt_id = $prompt)) AS density
FROM runs r WHERE r.run_id = $b
"""
TEXT = """
SELECT t.pos, t.text, t.is_special, round(a.nll::DOUBLE, 4) AS a, round(b.nll::DOUBLE, 4) AS b,
       round(b.nll::DOUBLE - a.nll, 4) AS diff
FROM tokens t
LEFT JOIN predictions a ON a.run_id = $a AND a.prompt_id = t.prompt_id AND a.pos = t.pos
LEFT JOIN predictions b ON b.run_id = $b AND b.prompt_id = t.prompt_id AND b.pos = t.pos
WHERE t.prompt_id = $prompt ORDER BY t.pos
"""
TEXT_RANGE = """
SELECT greatest(quantile_cont(greatest(a.nll, b.nll), 0.98), 0.5) AS loss,
       greatest(quantile_cont(abs(b.nll - a.nll), 0.98), 0.5) AS diff
FROM predictions a LEFT JOIN predictions b ON b.run_id = $b AND b.prompt_id = a.prompt_id AND b.pos = a.pos
WHERE a.run_id = $a AND a.prompt_id = $prompt
"""


def headline(
    loss: dict[str, Any],
    run: dict[str, Any],
    worst: dict[str, Any],
    selection: Selection,
    rows: str = "",
    *,
    repaired: str = "",
) -> Any:
    """The sentence, and under it what it is over and the head that changed most.

    `rows`: which rows that head is the worst of; `repaired`: what heads that were given back repair.
    """
    n = loss.get("n_prompts") or 0
    over = "this prompt" if selection.over == "prompt" else f"{n} prompts, weighted equally"
    below: list[Any] = [f"Nats a token, over {over}."]
    if loss.get("affected_kl") is not None:
        below.append(f" KL from BASE on affected rows {number(loss['affected_kl'])}.")
    if worst:
        below += [
            f" Changed most in what it writes ({rows or f'{selection.rows}, {selection.scope}'}): ",
            html.A(
                worst["head_name"],
                href="/head" + selection.search(layer=worst["layer"], head=worst["head"]),
                **{"data-go": f'{{"layer":{worst["layer"]},"head":{worst["head"]}}}', "data-page": "/head"},
            ),
            f", write error {number(worst['write_error'])}.",
        ]
    lines = [html.P(verdict(loss, run), className="sentence"), html.P(below, className="note")]
    return [*lines, html.P(repaired, className="repaired")] if repaired else lines


def brushed_words(loss: dict[str, Any], tokens: str) -> str:
    """How many rows a brush has and what A and B lose on its tokens."""
    n = loss.get("n") or 0
    if not n:
        return f"{tokens.capitalize()}: no row of this prompt predicts that."
    lost = f"NLL {number(loss['a'])} → {number(loss['b'])} nats a token"
    return f"Brushed: {tokens}; {n} rows predict them; {lost}. Heads, table and keys are of these rows."


def text_figure(frame: Any, loss: float, change: float, spans: list[dict[str, Any]]) -> dict[str, Any]:
    """Tokens and their losses as plain data for the browser: values in nats, colour steps 0…32.

    Loss runs from 0 to `loss` on the sequential scale, the difference from −`change` to `change`.
    """
    rows = records(frame)
    values = {name: [row[name] for row in rows] for name in ("a", "b", "diff")}
    return {
        "kind": "loss",
        "only": "" if any(value is not None for value in values["b"]) else "a",
        "texts": [row["text"] if row["text"] is not None else "▯" for row in rows],
        "special": [bool(row["is_special"]) for row in rows],
        "spans": spans,
        "values": values,
        "levels": {
            "a": [level(value, 0, loss) for value in values["a"]],
            "b": [level(value, 0, loss) for value in values["b"]],
            "diff": [level(value, -change, change) for value in values["diff"]],
        },
        "legends": {
            "a": f"BASE: 0 to {loss:.2f} nats or more",
            "b": f"RUN: 0 to {loss:.2f} nats or more",
            "diff": f"RUN − BASE: −{change:.2f} (blue) to +{change:.2f} nats (orange) or more",
        },
    }
