"""Every number a trace has about heads, under one kind of name, for the grid, the finder and the scatter plot.

A score is named as in SQL, `table.metric`: `head_stats.entropy`, `head_scores.retrieval`, `diffs.write_error`. What
comes after a `~` tells apart what is measured otherwise: the dense pattern of `head_stats`, other prompts or rows of
`head_scores`. A name without it is the newest of them, rankings of `restore` and `ablate` last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparselens.dashboards.metric import DIFF_METRICS, SHARES, SIGNED, STATS, meaning
from sparselens.dashboards.query import Source
from sparselens.dashboards.selection import Selection

DIFFS = "diffs"
STATISTICS = "head_stats"
SCORES = "head_scores"
DIFFS_THERE = "SELECT {columns} FROM diffs WHERE run_a = $a AND run_b = $b".replace(
    "{columns}", ", ".join(f"count({name}) AS {name}" for name in DIFF_METRICS)
)
STATS_THERE = """
SELECT pattern, bool_or(run_id = $a) AS in_a, coalesce(bool_or(run_id = $b), false) AS in_b, {columns}
FROM head_stats WHERE run_id IN ($a, $b) GROUP BY pattern ORDER BY pattern = 'dense', pattern
""".replace("{columns}", ", ".join(f"count({name}) AS {name}" for name in STATS))
VARIANT = """md5(concat_ws('|', coalesce(prompt_set, ''), coalesce(rows, ''),
  coalesce(json_extract_string(params, '$.fold'), ''), coalesce(json_extract_string(params, '$.noise'), '')))[:6]"""
SCORES_THERE = f"""
SELECT metric, {VARIANT} AS variant, any_value(definition) AS definition, any_value(prompt_set) AS prompt_set,
       any_value(rows) AS rows, any_value(json_extract_string(params, '$.fold')) AS fold,
       bool_or(run_id = $a) AS in_a, coalesce(bool_or(run_id = $b), false) AS in_b,
       max(analysis_id) AS newest
FROM head_scores WHERE run_id IN ($a, $b) AND head IS NOT NULL AND value IS NOT NULL
GROUP BY ALL ORDER BY metric, fold IS NOT NULL, newest DESC, variant
"""
ROWS_THERE = "SELECT DISTINCT rows FROM head_stats WHERE run_id IN ($a, $b) ORDER BY rows"
PREFERRED = (
    "diffs.write_error",
    "head_scores.retrieval",
    "head_scores.induction",
    "head_stats.sink_mass",
    "head_stats.entropy",
    "head_stats.distance",
)


@dataclass(frozen=True)
class Score:
    """One kind of number about heads; `sides` are those of `a`, `b` and `diff` (B − A) that the trace has."""

    name: str
    table: str
    metric: str
    variant: str
    meaning: str
    label: str
    sides: tuple[str, ...]
    signed: bool = False
    share: bool = False


def scores(source: Source, a: str, b: str) -> dict[str, Score]:
    """All scores of a pair by name: what differs, what analyses measured, what the captures measured."""
    found = [*_diffs(source, a, b), *_measured(source, a, b), *_captured(source, a, b)]
    return {score.name: score for score in found}


def _diffs(source: Source, a: str, b: str) -> list[Score]:
    there = source.first(DIFFS_THERE, a=a, b=b) if b else {}
    return [
        Score(
            f"{DIFFS}.{name}",
            DIFFS,
            name,
            "",
            meaning(DIFFS, name),
            name,
            ("diff",),
            name in SIGNED,
            name in SHARES,
        )
        for name in DIFF_METRICS
        if there.get(name)
    ]


def _measured(source: Source, a: str, b: str) -> list[Score]:
    found: list[Score] = []
    seen: set[str] = set()
    for row in source.records(SCORES_THERE, a=a, b=b or None):
        metric = row["metric"]
        first = metric not in seen
        seen.add(metric)
        over = ", ".join(str(row[name]) for name in ("rows", "prompt_set") if row[name])
        fold = f", ranked for fold {row['fold']}" if row["fold"] is not None else ""
        found.append(
            Score(
                f"{SCORES}.{metric}" if first else f"{SCORES}.{metric}~{row['variant']}",
                SCORES,
                metric,
                row["variant"],
                row["definition"] or metric,
                metric if first else f"{metric} ({over}{fold})",
                _sides(in_a=row["in_a"], in_b=row["in_b"]),
            )
        )
    return found


def _captured(source: Source, a: str, b: str) -> list[Score]:
    return [
        Score(
            f"{STATISTICS}.{name}" + ("" if row["pattern"] == "executed" else f"~{row['pattern']}"),
            STATISTICS,
            name,
            row["pattern"],
            meaning(STATISTICS, name),
            name if row["pattern"] == "executed" else f"{name} ({row['pattern']} pattern)",
            _sides(in_a=row["in_a"], in_b=row["in_b"]),
        )
        for row in source.records(STATS_THERE, a=a, b=b or None)
        for name in STATS
        if row[name]
    ]


def _sides(*, in_a: bool, in_b: bool) -> tuple[str, ...]:
    return ("a", "b", "diff") if in_a and in_b else ("a",) if in_a else ("b",)


def options(found: dict[str, Score]) -> list[dict[str, Any]]:
    """The scores as a grouped list of a picker."""
    titles = {
        DIFFS: "B against A (diffs)",
        SCORES: "what analyses measured (head_scores)",
        STATISTICS: "of each run (head_stats)",
    }
    grouped = {
        title: [
            {"value": score.name, "label": score.label} for score in found.values() if score.table == table
        ]
        for table, title in titles.items()
    }
    return [{"group": title, "items": items} for title, items in grouped.items() if items]


def rows_there(source: Source, selection: Selection) -> list[str]:
    """The rows that statistics of the pair are stored over."""
    return [row["rows"] for row in source.records(ROWS_THERE, a=selection.a, b=selection.b or None)]


def preferred(found: dict[str, Score], asked: str, first: Sequence[str] = (), *, but: str = "") -> str:
    """The asked score if it is there, else the first of `first` or of those that matter most, but not `but`."""
    if asked in found:
        return asked
    names = [name for name in (*first, *PREFERRED, *found) if name in found and name != but]
    return names[0] if names else ""


def whose(score: Score | None, asked: str) -> str:
    """The asked side if the trace has the score of it, else B's, A's or the difference."""
    if score is None or asked in score.sides:
        return asked
    return next((side for side in ("b", "a", "diff") if side in score.sides), "")
