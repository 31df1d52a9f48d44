"""`sl.analyse(...)`: ask one question from Python, and read what was answered, for notebooks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from sparselens.analyses.analysis import Shown, parse
from sparselens.storage.reader import connect
from sparselens.storage.trace import Trace

if TYPE_CHECKING:
    from sparselens.workbench.session import Session

_HEADS = """
SELECT 'L' || layer || 'H' || head AS head_name, layer, head, metric, value
FROM head_scores WHERE analysis_id = $analysis AND head IS NOT NULL ORDER BY layer, head
"""


@dataclass(frozen=True)
class Answer:
    """A question that was asked of a trace: the `analysis`, and `run_id`, under which its rows lie in `trace`."""

    trace: Path
    analysis: str
    run_id: str

    def df(self, **options: Any) -> pd.DataFrame:
        """Return what `sparselens analyse` prints as a table; options such as `top` are the command's."""
        return pd.DataFrame(self._shown(options).rows)

    def notes(self, **options: Any) -> list[str]:
        """Return what the command says under the table, a sentence each."""
        return self._shown(options).notes

    def figure(self, **options: Any) -> Any:
        """Return the answer as a plotly figure; options such as `metric` are the analysis' own.

        Raises `ValueError` for an analysis that draws none.
        """
        analysis, _ = parse(self.analysis)
        if analysis.figure is None:
            raise ValueError(f"{self.analysis} draws no figure; df() has its table")
        return analysis.figure(Trace.open(self.trace), self.run_id, options)

    def heads(self, *metrics: str) -> pd.DataFrame:
        """Return a row a head, by name, and a column a metric of `head_scores` (all of them, unless named).

        Raises `ValueError` for a metric that the answer does not have.
        """
        rows = self.sql(_HEADS).df()
        there = list(dict.fromkeys(rows["metric"]))
        for metric in metrics:
            if metric not in there:
                raise ValueError(
                    f"this answer of {self.analysis} has no score {metric!r} of heads; it has"
                    f" {', '.join(there) or 'none'}"
                )
        wide = rows.pivot(index=["layer", "head", "head_name"], columns="metric", values="value")
        named: pd.DataFrame = wide[list(metrics or there)].reset_index().set_index("head_name")
        return named.rename_axis(columns=None)

    def sql(self, text: str) -> Any:
        """Ask the trace in SQL (one SELECT); `$analysis` in it is this answer's run."""
        with connect(self.trace) as connection:
            asked = {"analysis": self.run_id} if "$analysis" in text else None
            return connection.sql(text, asked, max_rows=None)

    def _shown(self, options: dict[str, Any]) -> Shown:
        analysis, _ = parse(self.analysis)
        return analysis.show(Trace.open(self.trace), self.run_id, options)


def analyse(
    call: str,
    trace: str | Path,
    session: Session | None = None,
    *,
    again: bool = False,
    progress: bool = False,
    **arguments: Any,
) -> Answer:
    """Ask one question of `analyses`, by name or as a call, and return where its rows are.

    `session` is the model, for an analysis that runs one. `arguments` are the analysis' own. What was answered before
    is not measured again, unless `again` (see `Analysis.run`). Raises `ValueError` for an unknown analysis or
    argument, and where a session is missing.
    """
    analysis, given = parse(call)
    run_id = analysis.run(session, trace, again=again, progress=progress, **given | arguments)
    return Answer(Path(trace), analysis.name, run_id)
