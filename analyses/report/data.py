"""What a report asks of a trace: every statement of `report.sql` once, whatever the number of runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from sparselens.analyses.comparison import queries
from sparselens.analyses.interval import Interval, clustered_mean, clustered_means
from sparselens.analyses.runs import find_run
from sparselens.storage.reader import Connection

ROWS = ("span:answer", "affected", "all")
"""Rows that heads are ranked on: the first of these that every compared run has."""
Head: TypeAlias = tuple[int, int]
"""Layer and head."""
SCOPES = ("end_to_end", "local_mask", "local_policy")


@dataclass(frozen=True)
class Paired:
    """A score of the same prompts under base and run, and its change."""

    before: Interval
    after: Interval
    change: Interval


@dataclass(frozen=True, eq=False)
class Evidence:
    """A base and the runs that are reported on, in one trace."""

    connection: Connection
    trace: Path
    base: dict[str, Any]
    runs: tuple[dict[str, Any], ...]

    @classmethod
    def of(cls, connection: Connection, trace: str | Path, base: str, names: Sequence[str]) -> Evidence:
        """Find the runs; `ValueError` for one that is not there, is the base, is named twice or ran other prompts."""
        a = find_run(connection, base)
        runs: dict[str, dict[str, Any]] = {}
        for name in names:
            run = find_run(connection, name)
            if run["run_id"] == a["run_id"]:
                raise ValueError(f"{name!r} is the base itself: give another run")
            if run["run_id"] in runs:
                raise ValueError(f"{name!r} is named twice: give each run once")
            runs[run["run_id"]] = run
        if not runs:
            raise ValueError("give at least one run to report on")
        evidence = cls(connection, Path(trace), a, tuple(runs.values()))
        of = evidence.prompts_of
        for name, run in zip(names, runs.values(), strict=True):
            if not of[run["run_id"]] & of[a["run_id"]]:
                own = f"; it was captured with the base {run['parents'][0]}" if run["parents"] else ""
                raise ValueError(
                    f"{name!r} ({run['run_id']}, {len(of[run['run_id']])} prompts) ran no prompt of {base!r}"
                    f" ({a['run_id']}, {len(of[a['run_id']])} prompts): only runs on the same token ids can be"
                    f" compared{own}"
                )
        return evidence

    def ask(self, name: str, **parameters: Any) -> list[dict[str, Any]]:
        """Return the rows of a statement of `report.sql`, `$base`, `$runs` and `$all_runs` filled in."""
        text = queries("report/report.sql")[name]
        ids = [run["run_id"] for run in self.runs]
        base = self.base["run_id"]
        given = {"base": base, "runs": ids, "all_runs": [base, *ids], **parameters}
        used = {key: value for key, value in given.items() if f"${key}" in text}
        rows: list[dict[str, Any]] = self.connection.sql(text, used, max_rows=None).arrow().to_pylist()
        return rows

    @cached_property
    def prompts_of(self) -> dict[str, set[str]]:
        """The prompts of each run, the base among them."""
        found: dict[str, set[str]] = {run["run_id"]: set() for run in (self.base, *self.runs)}
        for row in self.ask("prompts_of"):
            found[row["run_id"]].add(row["prompt_id"])
        return found

    @cached_property
    def prompts(self) -> dict[str, dict[str, Any]]:
        """What is known of each prompt of the base: name, cluster, family, depth, call of its set."""
        return {row["prompt_id"]: row for row in self.ask("prompts")}

    @cached_property
    def scores(self) -> dict[tuple[str, str], dict[str, float]]:
        """Scores by prompt of each run and metric."""
        found: dict[tuple[str, str], dict[str, float]] = {}
        for row in self.ask("scores"):
            found.setdefault((row["run_id"], row["metric"]), {})[row["prompt_id"]] = row["value"]
        return found

    def paired(self, run_id: str, metric: str, prompts: Sequence[str] | None = None) -> Paired | None:
        """Return a score under base and run over the prompts that have both (of `prompts`); None without any."""
        before = self.scores.get((self.base["run_id"], metric), {})
        after = self.scores.get((run_id, metric), {})
        chosen = [each for each in sorted(before.keys() & after) if prompts is None or each in prompts]
        if not chosen:
            return None
        clusters = [self.prompts[each]["cluster"] for each in chosen]
        a = np.asarray([before[each] for each in chosen])
        b = np.asarray([after[each] for each in chosen])
        return Paired(*(clustered_mean(values, clusters) for values in (a, b, b - a)))

    @cached_property
    def token_changes(self) -> dict[str, list[dict[str, Any]]]:
        """KL and agreement by prompt, means over its tokens, of each run."""
        return _grouped(self.ask("token_changes"), "run_id")

    def token_change(self, run_id: str, column: str) -> Interval:
        """Return a column of `token_changes` with its interval."""
        rows = self.token_changes.get(run_id, [])
        values = [np.nan if row[column] is None else row[column] for row in rows]
        return clustered_mean(values, [self.prompts[row["prompt_id"]]["cluster"] for row in rows])

    @cached_property
    def summaries(self) -> dict[str, dict[str, Any]]:
        """Density and first-token mass of each run: means over prompts and heads."""
        return {row["run_id"]: row for row in self.ask("summaries")}

    @cached_property
    def rows(self) -> str | None:
        """The rows that heads are ranked on; None where no per-head differences are stored."""
        there = _grouped(self.ask("rows_there"), "run_id")
        kinds = [{row["rows"] for row in rows} for rows in there.values()]
        return next((each for each in ROWS if kinds and all(each in kind for kind in kinds)), None)

    @cached_property
    def heads(self) -> dict[tuple[str, str], list[dict[str, Any]]]:
        """Heads of each run and scope on `rows`, those that changed most what they write first."""
        found: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in self.ask("heads", rows=self.rows) if self.rows else []:
            found.setdefault((row["run_id"], row["scope"]), []).append(row)
        return found

    @cached_property
    def errors(self) -> dict[str, Errors]:
        """`write_error` of each run's heads on `rows`, prompt by prompt."""
        rows = self.ask("errors", rows=self.rows) if self.rows else []
        return {run_id: Errors.of(found) for run_id, found in _grouped(rows, "run_id").items()}

    @cached_property
    def head_scores(self) -> dict[str, list[dict[str, Any]]]:
        """Scores of the heads and layers of each run, measured on its weights under its policy."""
        return _grouped(self.ask("head_scores"), "run_id")

    @cached_property
    def by_head(self) -> dict[str, dict[Head, dict[str, float]]]:
        """The scores of every head that was scored, by run, head and metric; those of `sinks` are told with sinks."""
        found: dict[str, dict[Head, dict[str, float]]] = {
            run["run_id"]: {} for run in (self.base, *self.runs)
        }
        for run_id, rows in self.head_scores.items():
            for row in rows:
                if row["head"] is not None and row["value"] is not None and row["analysis"] != "sinks":
                    found[run_id].setdefault((row["layer"], row["head"]), {})[row["metric"]] = row["value"]
        return found

    @cached_property
    def evals(self) -> dict[str, list[dict[str, Any]]]:
        """Evaluations of each run."""
        return _grouped(self.ask("evals"), "run_id")

    def eval_of(self, run_id: str, metric: str, task: str) -> dict[str, Any] | None:
        """Return one evaluation of a run; None where it is not stored."""
        rows = self.evals.get(run_id, [])
        return next((row for row in rows if (row["metric"], row["task"]) == (metric, task)), None)

    @cached_property
    def definitions(self) -> dict[tuple[str, str], str]:
        """What analyses say that their metrics are, by analysis and metric."""
        return {
            (row["analysis"], metric): meaning
            for row in self.ask("definitions")
            for metric, meaning in json.loads(row["definitions"]).items()
        }

    @cached_property
    def interventions(self) -> dict[str, list[dict[str, Any]]]:
        """What happened when heads of each run were given back or cut; single random draws left out."""
        return _grouped(self.ask("interventions"), "run_id")

    @cached_property
    def size(self) -> tuple[int, int]:
        """Layers and heads of the model: as recorded, else as far as the tables show any."""
        extra = json.loads(self.base["extra"] or "{}")
        if "n_layers" in extra and "n_heads" in extra:
            return int(extra["n_layers"]), int(extra["n_heads"])
        seen = [(row["layer"], row["head"]) for rows in self.heads.values() for row in rows]
        return 1 + max((layer for layer, _ in seen), default=-1), 1 + max(
            (head for _, head in seen), default=-1
        )


@dataclass(frozen=True, eq=False)
class Errors:
    """`write_error` of the heads of one run: `by_head` with intervals, `values` by head and prompt."""

    by_head: dict[Head, Interval]
    values: Mapping[Head, Mapping[str, float]]
    cluster: Mapping[str, str]

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> Errors:
        """Take rows of the statement `errors`."""
        values: dict[Head, dict[str, float]] = {}
        for row in rows:
            values.setdefault((row["layer"], row["head"]), {})[row["prompt_id"]] = row["value"]
        cluster = {row["prompt_id"]: row["cluster"] for row in rows}
        by_prompts: dict[tuple[str, ...], list[Head]] = {}
        for head, found in values.items():
            by_prompts.setdefault(tuple(sorted(found)), []).append(head)
        by_head: dict[Head, Interval] = {}
        for prompts, heads in by_prompts.items():
            matrix = np.array([[values[head][prompt] for head in heads] for prompt in prompts])
            clusters = [cluster[prompt] for prompt in prompts]
            bounds = zip(*clustered_means(matrix, clusters), strict=True)
            for head, (mean, low, high) in zip(heads, bounds, strict=True):
                by_head[head] = Interval(
                    float(mean), float(low), float(high), len(prompts), len(set(clusters))
                )
        return cls(by_head, values, cluster)

    def mean_of(self, heads: Sequence[Head]) -> Interval:
        """Return the mean over some heads, with the interval over prompts."""
        by_prompt: dict[str, list[float]] = {}
        for head in heads:
            for prompt, value in self.values.get(head, {}).items():
                by_prompt.setdefault(prompt, []).append(value)
        prompts = sorted(by_prompt)
        means = [float(np.mean(by_prompt[prompt])) for prompt in prompts]
        return clustered_mean(means, [self.cluster[prompt] for prompt in prompts])


def _grouped(rows: Sequence[dict[str, Any]], name: str) -> dict[str, list[dict[str, Any]]]:
    """Return rows by their value of a column."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row[name], []).append(row)
    return found
