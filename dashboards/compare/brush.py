"""The brushed tokens of a prompt: every head over exactly the query rows that predict them, from `row_stats`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparselens.dashboards.choice import parents
from sparselens.dashboards.metric import DIFF_METRICS, meaning
from sparselens.dashboards.query import Source
from sparselens.dashboards.selection import Selection, Window

BRUSHED = """
SELECT layer, head, 'L' || layer || 'H' || head AS head_name, 1 AS n_prompts,
       count(*) FILTER (run_id = $b) AS n_rows,
       CASE WHEN $paired THEN avg(write_error) FILTER (run_id = $b) END AS write_error,
       avg(kept_mass) FILTER (run_id = $b) AS kept_mass,
       avg(sink_mass) FILTER (run_id = $b AND q_pos >= 8) - avg(sink_mass) FILTER (run_id = $a AND q_pos >= 8)
         AS sink_change,
       avg(entropy) FILTER (run_id = $b) - avg(entropy) FILTER (run_id = $a) AS entropy_change
FROM row_stats
WHERE run_id IN ($a, $b) AND prompt_id = $prompt AND pattern = 'executed' AND q_pos >= $first AND q_pos < $stop
GROUP BY layer, head HAVING count(*) FILTER (run_id = $b) > 0 ORDER BY layer, head
"""
"""Numbers of the same names in `diffs` are these over its rows, but `kept_mass`: here on B's own queries and keys."""
LOSS = """
SELECT count(*) FILTER (run_id = $b) AS n, avg(nll) FILTER (run_id = $a) AS a, avg(nll) FILTER (run_id = $b) AS b
FROM predictions
WHERE run_id IN ($a, $b) AND prompt_id = $prompt AND pos >= $start AND pos < $stop
"""
BASES = "SELECT run_id, coalesce(name, run_id) AS name, parents FROM runs"
ROW_METRICS = ("write_error", "kept_mass", "sink_change", "entropy_change")
MEANINGS = {
    "write_error": "mean over the rows of " + meaning("row_stats", "write_error"),
    "kept_mass": "mean over the rows of B's " + meaning("row_stats", "kept_mass"),
    "sink_change": meaning("diffs", "sink_change"),
    "entropy_change": meaning("diffs", "entropy_change"),
}


@dataclass(frozen=True)
class Brushed:
    """Heads over brushed rows: `frame` as that of `grid.HEADS`, the metrics that are there, what is to be said."""

    frame: Any
    metrics: tuple[str, ...]
    n_rows: int
    lines: tuple[str, ...]


def rows_of(brush: Window) -> Window | None:
    """The query rows that predict the tokens of a brush; None where no row does (token 0 alone)."""
    return None if brush.stop <= 1 else Window(max(brush.start, 1) - 1, brush.stop - 1)


def active(selection: Selection) -> Window | None:
    """The brush that numbers are over: one prompt's; None without one, and over all prompts."""
    return selection.brush if selection.over == "prompt" else None


def words(brush: Window) -> str:
    """A brush in words: its tokens, the first and the last one."""
    first, last = max(brush.start, 1), brush.stop - 1
    return f"token {last}" if first >= last else f"tokens {first}–{last}"


def brushed(source: Source, selection: Selection, b: str = "") -> Brushed:
    """Every head of B (or of another run `b`) over the rows that predict the brushed tokens."""
    brush, run = selection.brush or Window(0, 1), b or selection.b
    rows = rows_of(brush) or Window(0, 0)
    paired, why = _paired(source, selection.a, run)
    asked: dict[str, Any] = {"a": selection.a, "b": run, "prompt": selection.prompt}
    frame = source.frame(BRUSHED, first=rows.start, stop=rows.stop, paired=paired, **asked)
    there = tuple(name for name in ROW_METRICS if frame[name].notna().any())
    n_rows = int(frame["n_rows"].max()) if len(frame) else 0
    lines = [f"{n_rows} rows, those that predict {words(brush)} of this prompt; end to end."]
    if n_rows < len(rows):
        lines.append(f"{len(rows) - n_rows} of the {len(rows)} are not stored (or not in the prompt).")
    missing = [name for name in DIFF_METRICS if name not in ROW_METRICS]
    lines.append(f"Not stored row by row, so not offered: {', '.join(missing)}.")
    return Brushed(frame, there, n_rows, (*lines, *([why] if why else [])))


def _paired(source: Source, a: str, b: str) -> tuple[bool, str]:
    """Whether the rows' write error is against A, and why not: it is stored against the run's own base alone."""
    runs = {row["run_id"]: row for row in source.records(BASES)}
    bases = parents(runs.get(b, {}))
    if a in bases:
        return True, ""
    named = ", ".join(runs[base]["name"] if base in runs else base for base in bases)
    if not named:
        return False, "No write error: B was captured without a base."
    return False, f"No write error: that of rows is stored against B's own base ({named}); choose it as A."


def brushed_loss(source: Source, selection: Selection) -> dict[str, Any]:
    """Mean loss of A and B (nats a token) over the brushed tokens, and of how many; empty without a brush."""
    brush = active(selection)
    if brush is None:
        return {}
    asked = {"a": selection.a, "b": selection.b, "prompt": selection.prompt}
    return source.first(LOSS, start=brush.start, stop=brush.stop, **asked)
