"""The values of one score for every head: of A, of B and B − A, with intervals and what they are over."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparselens.analyses.interval import resamples
from sparselens.dashboards.choice import SCOPES
from sparselens.dashboards.heads.score import DIFFS, SCORES, STATISTICS, VARIANT, Score
from sparselens.dashboards.query import MAX_ROWS, Source, SourceError, records
from sparselens.dashboards.selection import SIDES, Selection

STATS_VALUES = """
SELECT s.prompt_id, coalesce(p.grp, s.prompt_id) AS grp, layer, head, max(n_rows) AS n_rows,
       max({metric}) FILTER (run_id = $a) AS a, max({metric}) FILTER (run_id = $b) AS b, b - a AS diff
FROM head_stats s LEFT JOIN prompts p USING (prompt_id)
WHERE run_id IN ($a, $b) AND pattern = $pattern AND rows = $rows AND ($over = 'all' OR s.prompt_id = $prompt)
GROUP BY ALL HAVING NOT $paired OR (a IS NOT NULL AND b IS NOT NULL) ORDER BY s.prompt_id, layer, head
"""
DIFF_VALUES = """
SELECT d.prompt_id, coalesce(p.grp, d.prompt_id) AS grp, layer, head, n_rows, {metric} AS diff
FROM diffs d LEFT JOIN prompts p USING (prompt_id)
WHERE run_a = $a AND run_b = $b AND scope = $scope AND rows = $rows
  AND ($over = 'all' OR d.prompt_id = $prompt) AND {metric} IS NOT NULL
ORDER BY d.prompt_id, layer, head
"""
SCORE_VALUES = f"""
WITH newest AS (
  SELECT * FROM head_scores
  WHERE run_id IN ($a, $b) AND head IS NOT NULL AND metric = $metric AND {VARIANT} = $variant
  QUALIFY row_number() OVER (PARTITION BY run_id, layer, head ORDER BY analysis_id DESC) = 1
)
SELECT layer, head, {{sides}}, b - a AS diff FROM newest GROUP BY layer, head ORDER BY layer, head
""".replace(
    "{sides}",
    ", ".join(
        f"max({column}) FILTER (run_id = ${side}) AS {side}{suffix}"
        for side in ("a", "b")
        for column, suffix in (("value", ""), ("ci_low", "_low"), ("ci_high", "_high"))
    ),
)
SCORE_ABOUT = f"""
SELECT run_id, any_value(prompt_set) AS prompt_set, any_value(rows) AS rows, max(n) AS n, min(n) AS n_least,
       max(n_clusters) AS n_clusters, any_value(r.name) AS analysis
FROM head_scores s LEFT JOIN (SELECT run_id AS analysis_id, name FROM runs) r USING (analysis_id)
WHERE run_id IN ($a, $b) AND head IS NOT NULL AND metric = $metric AND {VARIANT} = $variant GROUP BY run_id
"""


@dataclass(frozen=True)
class Values:
    """`rows` have `layer, head, head_name`, and `a`, `b`, `diff` with `_low` and `_high`; None where there is none.

    `over` says of each side what its numbers are over.
    """

    score: Score
    rows: list[dict[str, Any]]
    over: dict[str, str]

    def of(self, side: str) -> list[float]:
        """The numbers of a side that are there."""
        return [row[side] for row in self.rows if row.get(side) is not None]


def values(source: Source, score: Score, selection: Selection) -> Values:
    """All values of a score for the selection's pair, prompt (or all), rows and scope.

    Raises:
        SourceError: when there are too many to be averaged, or the trace cannot be read.

    """
    fields = ("a", "b", "prompt", "over", "scope", "rows")
    name = f"values {score.name} " + " ".join(str(getattr(selection, field)) for field in fields)
    if score.table == SCORES:
        return source.kept(name, lambda: _measured(source, score, selection))
    return source.kept(name, lambda: _averaged(source, score, selection))


def _measured(source: Source, score: Score, selection: Selection) -> Values:
    asked: dict[str, Any] = {
        "a": selection.a, "b": selection.b or None, "metric": score.metric, "variant": score.variant,
    }  # fmt: skip
    over = {}
    for row in source.records(SCORE_ABOUT, **asked):
        n = f"{row['n_least']}–{row['n']}" if row["n_least"] != row["n"] else f"{row['n']}"
        words = [f"rows {row['rows']}" if row["rows"] else "", row["prompt_set"] or ""]
        words += [
            f"n {n} in {row['n_clusters']} groups" if row["n"] is not None else "",
            _by(row["analysis"]),
        ]
        over["a" if row["run_id"] == selection.a else "b"] = " · ".join(word for word in words if word)
    if len(over) == 2:
        over["diff"] = over["b"] if over["a"] == over["b"] else f"A: {over['a']}; B: {over['b']}"
    return Values(score, _named(source.records(SCORE_VALUES, **asked)), over)


def _by(analysis: str | None) -> str:
    return f"analyse {analysis}" if analysis else ""


def _named(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "head_name": f"L{row['layer']}H{row['head']}"} for row in rows]


def _averaged(source: Source, score: Score, selection: Selection) -> Values:
    asked: dict[str, Any] = {name: getattr(selection, name) for name in ("a", "b", "prompt", "over", "rows")}
    if score.table == DIFFS:
        frame = source.frame(DIFF_VALUES.format(metric=score.metric), scope=selection.scope, **asked)
    else:
        asked |= {"b": selection.b or None, "pattern": score.variant, "paired": len(score.sides) == 3}
        frame = source.frame(STATS_VALUES.format(metric=score.metric), **asked)
    if frame.empty:
        return Values(score, [], {})
    if len(frame) >= MAX_ROWS:
        raise SourceError(
            f"{score.label} has more than {MAX_ROWS:,} numbers over all prompts: choose this prompt."
        )
    heads = frame[["layer", "head"]].drop_duplicates().sort_values(["layer", "head"])
    for side in [side for side in SIDES if side in frame]:
        heads = heads.merge(_means(frame, side), on=["layer", "head"], how="left")
    return Values(score, _named(records(heads)), dict.fromkeys(score.sides, _over(score, selection, frame)))


def _means(frame: Any, side: str) -> Any:
    """Each head's mean over prompts and its 95 % bootstrap over groups, as `side`, `side_low`, `side_high`."""
    wide = frame.pivot(index=["grp", "prompt_id"], columns=["layer", "head"], values=side).astype(float)
    mean, low, high = intervals(wide.to_numpy(), wide.index.get_level_values("grp").to_list())
    found = wide.columns.to_frame(index=False)
    return found.assign(**{side: mean, f"{side}_low": low, f"{side}_high": high})


def intervals(
    numbers: NDArray[np.float64], groups: list[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean, low and high `[columns]` of `numbers [prompts, columns]`, whole groups drawn; NaN left out."""
    known = ~np.isnan(numbers)
    filled = np.where(known, numbers, 0.0)
    times = resamples(groups)
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # a head without a number stays NaN
        mean = filled.sum(0) / known.sum(0)
        if np.isnan(times).any():
            return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
        low, high = np.nanquantile((times @ filled) / (times @ known), [0.025, 0.975], axis=0)
    return mean, low, high


def _over(score: Score, selection: Selection, frame: Any) -> str:
    prompts = frame[["prompt_id", "grp"]].drop_duplicates()
    first = frame.groupby("prompt_id")["n_rows"].first()
    words = [f"{score.variant} pattern"] if score.table == STATISTICS else [f"scope {selection.scope}"]
    if score.table == DIFFS and selection.scope in SCOPES:
        words = [f"scope {selection.scope} ({SCOPES[selection.scope]})"]
    words.append(f"rows {selection.rows}, {int(first.sum())} query rows")
    if selection.over == "prompt":
        words.append("this prompt")
    else:
        groups = prompts["grp"].nunique()
        words.append(
            f"mean over {len(prompts)} prompts in {groups} groups"
            + ("" if groups > 1 else ", too few for an interval")
        )
    return " · ".join(words)
