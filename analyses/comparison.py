"""What the tables of a trace say about two runs of the same prompts. Reads only; nothing here needs a model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sparselens.analyses.interval import Interval, clustered_mean
from sparselens.storage.reader import Connection

SCOPE = "end_to_end"
ROLES = ("retrieval", "induction", "previous_token", "duplicate_token", "sink_rate")
"""Scores that a head's line names, where they are at least `NAMED`."""
NAMED = 0.1


@cache
def queries(file: str = "comparison.sql") -> dict[str, str]:
    """Return the statements of a file in `analyses/` by name."""
    text = (Path(__file__).parent / file).read_text(encoding="utf-8")
    parts = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)[1:]
    return {name: body.strip().rstrip(";") for name, body in zip(parts[::2], parts[1::2], strict=True)}


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two runs in one trace: `a` the base's `runs` row, `b` the other's."""

    connection: Connection
    a: dict[str, Any]
    b: dict[str, Any]

    def ask(self, name: str, **parameters: Any) -> Any:
        """Return a statement of `comparison.sql` as an arrow table, `$run_a` and `$run_b` filled in."""
        text = queries()[name]
        given = {"run_a": self.a["run_id"], "run_b": self.b["run_id"], **parameters}
        used = {key: value for key, value in given.items() if f"${key}" in text}
        return self.connection.sql(text, used, max_rows=None).arrow()

    def rows_that_matter(self) -> str | None:
        """Return the rows that heads are ranked on: the answer's where there are any, else the affected ones."""
        there = {row["rows"] for row in self.ask("rows_there").to_pylist() if row["scope"] == SCOPE}
        for rows in ("span:answer", "affected", "all"):
            if rows in there:
                return rows
        return None

    def heads(self, rows: str, top: int = 20) -> list[dict[str, Any]]:
        """Return the heads that changed most on `rows`, by `write_error`: means over prompts, roles where known."""
        roles = self._roles()
        found: list[dict[str, Any]] = self.ask("heads", scope=SCOPE, rows=rows, top=top).to_pylist()
        return [head | {"roles": roles.get((head["layer"], head["head"]), "")} for head in found]

    def write_error(self, rows: str, layer: int, head: int) -> Interval:
        """Return one head's `write_error` with its interval."""
        values = self.ask("head_prompts", scope=SCOPE, rows=rows, layer=layer, head=head)
        return clustered_mean(values["value"].to_numpy(), values["cluster"].to_pylist())

    def _roles(self) -> dict[tuple[int, int], str]:
        """Return the roles of every head that was scored under A's policy on A's weights."""
        found: dict[tuple[int, int], dict[str, float]] = {}
        for row in self.ask("roles").to_pylist():
            found.setdefault((row["layer"], row["head"]), {})[row["metric"]] = row["value"]
        return {head: spoken(scores) for head, scores in found.items()}

    def score(self, metric: str) -> tuple[Interval, Interval, Interval] | None:
        """Return a per-prompt score under A, under B, and its paired change; None where it was not recorded."""
        table = self.ask("scores").to_pylist()
        values: dict[str, dict[bool, float]] = {}
        cluster: dict[str, str] = {}
        for row in table:
            if row["metric"] == metric:
                values.setdefault(row["prompt_id"], {})[row["is_b"]] = row["value"]
                cluster[row["prompt_id"]] = row["cluster"]
        paired = [prompt for prompt, both in values.items() if len(both) == 2]
        if not paired:
            return None
        names = [cluster[prompt] for prompt in paired]
        before = np.asarray([values[prompt][False] for prompt in paired])
        after = np.asarray([values[prompt][True] for prompt in paired])
        return (
            clustered_mean(before, names),
            clustered_mean(after, names),
            clustered_mean(after - before, names),
        )

    def token_change(self, column: str) -> Interval:
        """Return a column of `token_changes` (per-prompt means over tokens) with its interval."""
        table = self.ask("token_changes")
        return clustered_mean(table[column].to_numpy(zero_copy_only=False), table["cluster"].to_pylist())


def spoken(scores: dict[str, float]) -> str:
    """Return a head's role scores as words; a score that a change of gap halves is said with its worst gap."""
    words = []
    for name in ROLES:
        value = scores.get(name)
        if value is None or value < NAMED:
            continue
        worst = scores.get(f"{name}_min_gap", value)
        words.append(
            f"{name} {value:.2f}" + (f" ({worst:.2f} at its worst gap)" if worst < value / 2 else "")
        )
    return ", ".join(words) or f"no role score of {NAMED:g} or more"
