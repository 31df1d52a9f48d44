"""What every head changed from A to B: stored differences, or over the rows that predict the brushed tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparselens.dashboards.compare.brush import MEANINGS, active, brushed, words
from sparselens.dashboards.compare.grid import HEADS
from sparselens.dashboards.metric import DIFF_METRICS, meaning
from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.selection import Selection

BRUSH_SCOPE = "end_to_end"


@dataclass(frozen=True)
class Change:
    """Heads with their numbers: `frame` with a row a head; `metrics` that it has; what is to be said about it.

    `rows` names the query rows in a few words, `scope` what was compared, `n_rows` counts the rows of a head.
    """

    frame: Any
    metrics: tuple[str, ...]
    rows: str
    scope: str
    lines: tuple[str, ...] = ()

    def metric(self, asked: str) -> str:
        """The asked metric where it is there, else the first; SourceError when there is none at all."""
        if not self.metrics:
            raise SourceError(" ".join(self.lines) or "No numbers about heads are stored here.")
        return asked if asked in self.metrics else self.metrics[0]

    def meaning(self, name: str) -> str:
        """What a metric means over these rows."""
        return MEANINGS[name] if self.lines else meaning("diffs", name)


def change(source: Source, selection: Selection, b: str = "") -> Change:
    """The heads of B (or of another run `b`) against A over the selection's rows, brushed ones first."""
    brush = active(selection)
    if brush is not None:
        found = brushed(source, selection, b)
        rows = f"the {found.n_rows} rows of {words(brush)}"
        return Change(found.frame, found.metrics, rows, BRUSH_SCOPE, found.lines)
    asked = {field: getattr(selection, field) for field in ("a", "b", "prompt", "over", "scope", "rows")}
    frame = source.frame(HEADS, **{**asked, "b": b or selection.b})
    if frame.empty:
        raise SourceError(
            "No differences of B against A are stored for this pair and prompt. If they are stored the other way "
            "round, swap (s); else this command fills what the tables allow:",
            f"sparselens diff {selection.a} {b or selection.b} --trace {source.path}",
        )
    return Change(frame, DIFF_METRICS, selection.rows, selection.scope)


def offered(source: Source, selection: Selection) -> list[dict[str, Any]]:
    """The list of metrics: over brushed rows those that have no value row by row cannot be chosen."""
    there: tuple[str, ...] = DIFF_METRICS
    if active(selection) is not None:
        there = change(source, selection).metrics
    return [
        {
            "value": name,
            "label": name if name in there else f"{name} (not of these rows)",
            "disabled": name not in there,
        }
        for name in DIFF_METRICS
    ]
