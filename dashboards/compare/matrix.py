"""Several runs against one base: every head of every run on one colour scale, and each run's loss and density."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparselens.dashboards.colour import level
from sparselens.dashboards.compare.brush import active
from sparselens.dashboards.compare.change import change
from sparselens.dashboards.heads.score import scores
from sparselens.dashboards.heads.score_value import intervals, values
from sparselens.dashboards.metric import metric
from sparselens.dashboards.query import Source, SourceError, records
from sparselens.dashboards.selection import Selection

COMPARED = """
SELECT r.run_id, coalesce(r.name, r.run_id) AS name, coalesce(r.policy, '') AS policy, r.status,
       d.run_b IS NOT NULL AS compared
FROM runs r LEFT JOIN (SELECT DISTINCT run_b FROM diffs WHERE run_a = $a) d ON d.run_b = r.run_id
WHERE r.kind = 'capture' AND r.run_id <> $a ORDER BY r.created_at, r.run_id
"""
LOSSES = """
WITH loss AS (
  SELECT n.run_id, n.prompt_id, coalesce(any_value(p.grp), n.prompt_id) AS grp, avg(n.nll) AS nll,
         avg(n.nll) FILTER (WHERE n.pos >= s.start AND n.pos < s.stop) AS answer
  FROM predictions n LEFT JOIN prompts p USING (prompt_id)
  LEFT JOIN spans s ON s.prompt_id = n.prompt_id AND s.name = 'answer'
  WHERE (n.run_id = $a OR n.run_id IN (SELECT unnest($runs))) AND ($over = 'all' OR n.prompt_id = $prompt)
  GROUP BY n.run_id, n.prompt_id
)
SELECT b.run_id, b.prompt_id, b.grp, a.nll AS whole_a, b.nll AS whole_b, a.answer AS answer_a, b.answer AS answer_b,
       b.nll - a.nll AS whole_change, b.answer - a.answer AS answer_change
FROM loss b JOIN loss a ON a.prompt_id = b.prompt_id AND a.run_id = $a
WHERE b.run_id <> $a ORDER BY b.run_id, b.prompt_id
"""
DENSITIES = """
SELECT run_id, avg(density) AS density FROM head_stats
WHERE run_id IN (SELECT unnest($runs)) AND pattern = 'executed' AND rows = 'all'
  AND ($over = 'all' OR prompt_id = $prompt) GROUP BY run_id
"""
Place = tuple[int, int]
Number = tuple[float, float | None, float | None]


@dataclass(frozen=True)
class Line:
    """One run of the matrix: `heads` by place with their intervals, `loss` and `density`; `problem` if it has none."""

    run: dict[str, Any]
    heads: dict[Place, Number]
    loss: dict[str, Any]
    density: float | None
    problem: str = ""


@dataclass(frozen=True)
class Matrix:
    """The runs, worst loss first; `said` are the lines about what they are over and what was left out."""

    lines: Sequence[Line]
    metric: str
    meaning: str
    said: tuple[str, ...]


def candidates(source: Source, a: str) -> list[dict[str, Any]]:
    """The captured runs that are compared with base A."""
    return [run for run in source.records(COMPARED, a=a) if run["compared"]]


def matrix(source: Source, selection: Selection) -> Matrix:
    """The runs that the selection lists, against A; those with another base are left out, and it says so."""
    runs = {run["run_id"]: run for run in source.records(COMPARED, a=selection.a)}
    said, asked = [], []
    for name in [word for word in selection.runs.split(",") if word]:
        if name not in runs:
            said.append(f"{name[:60]!r} is A itself or no captured run of this trace: left out.")
        elif not runs[name]["compared"]:
            said.append(
                f"{runs[name]['name'][:60]} is not compared with A (no differences against it): left out."
            )
        else:
            asked.append(name)
    if not asked:
        return Matrix([], selection.metric, "", tuple(said))
    whole = losses(source, selection, asked)
    shared: dict[str, Any] = {"runs": asked, "over": selection.over, "prompt": selection.prompt}
    densities = {row["run_id"]: row["density"] for row in source.records(DENSITIES, **shared)}
    found = _Found(selection.metric)
    lines = []
    for name in asked:
        heads, problem = found.heads(source, selection, name)
        lines.append(Line(runs[name], heads, whole.get(name, {}), densities.get(name), problem))
    lines.sort(key=lambda line: -(line.loss.get("change") or 0.0))
    return Matrix(lines, found.metric, found.meaning, (*said, *found.said))


class _Found:
    """The heads of one run after the other, all by one metric: the asked one, or the first that the first run has."""

    def __init__(self, asked: str) -> None:
        self.metric, self.meaning = asked, ""
        self.said: list[str] = []

    def heads(self, source: Source, selection: Selection, run: str) -> tuple[dict[Place, Number], str]:
        """The heads of a run with intervals over groups where numbers are over all prompts; or why there are none."""
        try:
            found = change(source, selection, run)
            name = found.metric(self.metric)
            if not self.meaning:
                if name != self.metric:
                    self.said.append(f"{self.metric} has no value here; {name} is shown.")
                self.metric, self.meaning = name, found.meaning(name)
                self.said += found.lines[:1] or [_over(selection)]
            elif name != self.metric:
                return {}, " ".join(found.lines) or f"it has no {self.metric}"
            if selection.over == "all" and active(selection) is None:
                return _intervals(source, selection, run, self.metric), ""
        except SourceError as problem:
            return {}, str(problem)
        rows = records(found.frame[["layer", "head", self.metric]])
        return {
            (row["layer"], row["head"]): (row[self.metric], None, None)
            for row in rows
            if row[self.metric] is not None
        }, ""


def _over(selection: Selection) -> str:
    many = "mean over all prompts, 95 % bootstrap over groups" if selection.over == "all" else "this prompt"
    return f"Rows {selection.rows}, {selection.scope}, {many}."


def _intervals(source: Source, selection: Selection, run: str, name: str) -> dict[Place, Number]:
    score = scores(source, selection.a, run).get(f"diffs.{name}")
    found = values(source, score, replace(selection, b=run)).rows if score is not None else []
    return {
        (row["layer"], row["head"]): (row["diff"], row.get("diff_low"), row.get("diff_high"))
        for row in found
        if row.get("diff") is not None
    }


def losses(source: Source, selection: Selection, runs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Loss of base and run (of the answer where there is one), its change with an interval, and the share of the gap.

    Prompts are paired with the base's and weigh alike; intervals are 95 % bootstraps over groups. The gap is the
    largest rise among these runs.
    """
    asked = {"a": selection.a, "over": selection.over, "prompt": selection.prompt}
    frame = source.frame(LOSSES, runs=list(runs), **asked)
    kind = "answer" if frame["answer_change"].notna().any() else "whole"
    frame = frame.dropna(subset=[f"{kind}_change"])
    found = {str(run): _loss(part, kind) for run, part in frame.groupby("run_id")}
    gap = max((each["change"] for each in found.values()), default=0.0)
    return {run: {**each, "share": each["change"] / gap if gap > 0 else None} for run, each in found.items()}


def _loss(part: Any, kind: str) -> dict[str, Any]:
    changes = part[[f"{kind}_change"]].to_numpy(dtype=float)
    groups = part["grp"].to_list()
    mean, low, high = (each[0] for each in intervals(changes, groups))
    return {
        "kind": kind,
        "a": float(part[f"{kind}_a"].mean()),
        "b": float(part[f"{kind}_b"].mean()),
        "change": float(mean),
        "low": None if np.isnan(low) else float(low),
        "high": None if np.isnan(high) else float(high),
        "n": len(part),
        "n_groups": len(set(groups)),
    }


def scale(found: Matrix) -> tuple[float, float]:
    """The ends of the one scale that all runs share."""
    drawn = metric(found.metric)
    high = (
        1.0
        if drawn.share
        else max((abs(n[0]) for line in found.lines for n in line.heads.values()), default=0.0)
    )
    return (-high if drawn.signed else 0.0), high


def matrix_figure(found: Matrix, shape: tuple[int, int], group: int) -> dict[str, Any]:
    """The matrix as plain data for the browser: a lane a run, its heads layer by layer, colour steps 0…32."""
    low, high = scale(found)
    places = [(layer, head) for layer in range(shape[0]) for head in range(shape[1])]
    return {
        "metric": found.metric,
        "layers": shape[0],
        "heads": shape[1],
        "group": group,
        "scale": "div" if metric(found.metric).signed else "seq",
        "low": low,
        "high": high,
        "lines": [
            {
                "run": line.run["run_id"],
                "name": line.run["name"],
                "policy": line.run["policy"] if line.run["policy"] not in line.run["name"] else "",
                "density": line.density,
                "loss": line.loss,
                "problem": line.problem,
                **_lane(line, places, low, high),
            }
            for line in found.lines
        ],
    }


def _lane(line: Line, places: Sequence[Place], low: float, high: float) -> dict[str, Any]:
    numbers = [line.heads.get(place, (None, None, None)) for place in places]
    made: dict[str, Any] = {"levels": [level(number[0], low, high) for number in numbers]}
    for name, at in (("values", 0), ("lows", 1), ("highs", 2)):
        made[name] = [None if number[at] is None else float(f"{number[at]:.4g}") for number in numbers]
    return made if any(value is not None for value in made["lows"]) else {**made, "lows": [], "highs": []}


def table_rows(found: Matrix) -> list[dict[str, Any]]:
    """A row a head: the worst number over the runs and whose it is, the mean, and every run's (`run0`, `run1` …)."""
    drawn = metric(found.metric)
    places = sorted({place for line in found.lines for place in line.heads})
    rows = []
    for place in places:
        numbers = [
            (number, line.heads[place][0]) for number, line in enumerate(found.lines) if place in line.heads
        ]
        worst = max(numbers, key=lambda each: -each[1] if drawn.share else abs(each[1]))
        rows.append(
            {
                "layer": place[0],
                "head": place[1],
                "head_name": f"L{place[0]}H{place[1]}",
                "worst": worst[1],
                "whose": found.lines[worst[0]].run["name"],
                "mean": sum(value for _, value in numbers) / len(numbers),
                "n": len(numbers),
                **{f"run{number}": value for number, value in numbers},
            }
        )
    return rows
