"""`diff A B`: the heads that changed most between two runs of the same prompts.

A paired capture has stored its differences exactly; they are read. For runs captured apart, what the tables allow is
computed and stored as a run of kind `diff`; the rest stays NULL, and the capture that would fill it is named.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparselens.analyses.comparison import Comparison
from sparselens.analyses.runs import find_run
from sparselens.storage.reader import connect
from sparselens.storage.trace import Trace
from sparselens.storage.writer import RunWriter
from sparselens.workbench.face import public

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Difference:
    """The table of a diff: `rows` of heads, the query rows they are `over`, and `notes` on what is missing."""

    rows: list[dict[str, Any]]
    over: str
    notes: list[str]
    trace: Path
    run_a: str
    run_b: str

    def df(self) -> pd.DataFrame:
        """Return the rows as a data frame."""
        import pandas as pd  # not at the top: the report reads tables without it

        return pd.DataFrame(self.rows)

    def grid(self, metric: str = "write_error", **over: Any) -> Any:
        """Return the layer × head grid of a metric of the pair as a figure; see `sl.pair_grid`."""
        return public("pair_grid")(self.trace, self.run_a, self.run_b, metric, **over)


_SHOWN = (
    "head_name",
    "write_error",
    "kept_mass",
    "kept_mass_nosink",
    "js",
    "top8_overlap",
    "out_cosine",
    "sink_change",
    "entropy_change",
    "n_rows",
    "n_prompts",
    "roles",
)


def diff(trace: str | Path, run_a: str, run_b: str, *, top: int = 20, again: bool = False) -> Difference:
    """Return the heads that changed most from run A to run B.

    `run_a`, `run_b` are ids, names or policies. Computes and stores what is missing once; `again` computes anew.
    Raises `ValueError` when a run does not exist, or the two share no prompt (unequal token ids cannot be compared).
    """
    with connect(trace) as connection:
        a, b = find_run(connection, run_a), find_run(connection, run_b)
        if a["run_id"] == b["run_id"]:
            raise ValueError(f"{run_a!r} and {run_b!r} are the same run: give two")
        comparison = Comparison(connection, a, b)
        shared = comparison.ask("shared").to_pylist()[0]
        if not shared["shared"]:
            raise ValueError(
                f"{run_a!r} ({shared['in_a']} prompts) and {run_b!r} ({shared['in_b']} prompts) ran no common prompt:"
                " only runs on the same token ids can be compared"
            )
        notes = []
        over = comparison.rows_that_matter()
        if over is None or again:
            _fill(Trace.open(trace), comparison)
            over = comparison.rows_that_matter() or "all"
        heads = comparison.heads(over, top)
        if all(head["write_error"] is None for head in heads):
            notes.append(
                "write_error, kept mass, JS, overlap and KL need both runs in one capture; this fills them:\n  "
                + capture_command(comparison, trace)
            )
        if shared["shared"] < max(shared["in_a"], shared["in_b"]):
            notes.append(f"over the {shared['shared']} prompts that both runs have")
        rows = [{name: head[name] for name in _SHOWN} for head in heads]
        return Difference(rows, over, notes, Path(trace), a["run_id"], b["run_id"])


def _fill(trace: Trace, comparison: Comparison) -> None:
    """Store what `head_stats` and `predictions` say about two runs that were captured apart."""
    heads, tokens = comparison.ask("fill_diffs"), comparison.ask("fill_tokens")
    meta = {
        "kind": "diff",
        "name": "diff",
        "parents": (comparison.a["run_id"], comparison.b["run_id"]),
        "model": comparison.b["model"],
        "args": {"run_a": comparison.a["run_id"], "run_b": comparison.b["run_id"]},
    }
    with RunWriter.start(trace, meta=meta) as run:
        with run.part(heads["prompt_id"].unique().to_pylist()) as part:
            for name, table in (("diffs", heads), ("token_diffs", tokens)):
                part.add(name, {column: table[column] for column in table.column_names})
        run.finish()


def capture_command(comparison: Comparison, trace: str | Path) -> str:
    """Return the command that captures both policies paired, on prompts of the same sets."""
    args = json.loads(comparison.b["args"] or "{}")
    sets = [row["prompt_set"] for row in comparison.ask("prompt_sets").to_pylist() if row["prompt_set"]]
    words = ["sparselens", "capture", str(comparison.b["model"])]
    words += [word for name in sets for word in ("--prompts", name)]
    words += ["--base", str(comparison.a["policy"]), "--policy", str(comparison.b["policy"])]
    words += ["--kernel", str(args.get("kernel", "blocked")), "--trace", str(trace)]
    return shlex.join(words)
