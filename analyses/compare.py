"""`sl.compare(base, [runs])`: two or more runs side by side, for notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from sparselens.analyses.comparison import Comparison
from sparselens.analyses.diff import diff
from sparselens.analyses.report.report import page, report
from sparselens.analyses.runs import find_run
from sparselens.storage.reader import connect
from sparselens.workbench.face import public

if TYPE_CHECKING:
    from sparselens.workbench.capture import RunHandle
    from sparselens.workbench.run import HeadHandle

_METRICS = ("answer_nll", "answer_generated", "answer_forced", "logit_diff", "nll")


@dataclass(frozen=True)
class Compared:
    """A base and the runs compared with it, all in one trace."""

    trace: Path
    base: str
    runs: tuple[str, ...]

    def df(self) -> pd.DataFrame:
        """Return a row a run: density, answer and text loss with intervals, KL from the base."""
        rows: list[dict[str, Any]] = []
        with connect(self.trace) as connection:
            a = find_run(connection, self.base)
            for name in self.runs:
                comparison = Comparison(connection, a, find_run(connection, name))
                density = comparison.ask("density", run=comparison.b["run_id"]).to_pylist()[0]
                row: dict[str, Any] = {"policy": comparison.b["policy"], **density}
                for metric in _METRICS:
                    score = comparison.score(metric)
                    if score is not None:
                        row |= {f"{metric}_base": score[0].mean, metric: score[1].mean}
                        row |= {f"{metric}_change": str(score[2])}
                row |= {name: comparison.token_change(name).mean for name in ("kl_affected", "kl_all")}
                rows.append(row)
        return pd.DataFrame(rows)

    def heads(self, run: str | None = None, *, top: int = 20) -> pd.DataFrame:
        """Return the heads that changed most in a run (the first, unless said): see `sparselens diff`."""
        return pd.DataFrame(diff(self.trace, self.base, run or self.runs[0], top=top).rows)

    def grid(self, metric: str = "write_error", *, run: str | None = None, **over: Any) -> Any:
        """Return the layer × head grid of what a run (the first, unless said) changed; see `sl.pair_grid`."""
        return public("pair_grid")(self.trace, self.base, run or self.runs[0], metric, **over)

    def head(self, name: str, *, run: str | None = None) -> HeadHandle:
        """Return a head (`L18H6`) of a run (the first, unless said) beside the base: `.view()` shows it."""
        from sparselens.workbench.run import HeadHandle

        return HeadHandle(name, run or self.runs[0], self.trace, self.base)

    def sql(self, text: str) -> Any:
        """Ask the trace in SQL (one SELECT)."""
        return connect(self.trace).sql(text)

    def report(self, form: str = "text") -> str:
        """Return the report as `text`, `markdown` or `html`: see `sparselens report`."""
        return report(self.trace, self.base, self.runs, form=form)

    def __str__(self) -> str:
        return self.report()

    def _repr_markdown_(self) -> str:
        return self.report("markdown")

    def _repr_html_(self) -> str:
        from sparselens.analyses.report.html import html

        return html(page(self.trace, self.base, self.runs), whole=False)


def compare(
    base: RunHandle | str, runs: Sequence[RunHandle | str], *, trace: str | Path | None = None
) -> Compared:
    """Put runs beside a base; each is what `capture` returned, or an id, name or policy in `trace`.

    Raises `ValueError` when the trace is not known or the runs lie in several.
    """
    given = [base, *runs]
    traces = {Path(run.trace) for run in given if not isinstance(run, str)}
    if trace is not None:
        traces.add(Path(trace))
    if len(traces) != 1:
        found = ", ".join(map(str, sorted(traces))) or "none: give trace="
        raise ValueError(f"compared runs lie in one trace; found {found}")
    if not runs:
        raise ValueError("give at least one run to compare with the base")
    ids = [run if isinstance(run, str) else run.run_id for run in given]
    return Compared(traces.pop(), ids[0], tuple(ids[1:]))
