"""`report BASE RUN…`: what was preserved, what was dropped and which heads repair it, with numbers and intervals.

It reads tables only. What is not in the trace is named, with the command that measures it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from sparselens.analyses.report.data import Evidence
from sparselens.analyses.report.head import heads
from sparselens.analyses.report.lead import lead
from sparselens.analyses.report.loss import losses
from sparselens.analyses.report.markdown import markdown
from sparselens.analyses.report.method import method
from sparselens.analyses.report.page import Page, Verbatim, Words, joined
from sparselens.analyses.report.prompt import prompts
from sparselens.analyses.report.repair import repair
from sparselens.analyses.report.role import roles
from sparselens.analyses.report.run import names, ran
from sparselens.analyses.report.sink import sinks
from sparselens.analyses.report.text import text
from sparselens.storage.reader import connect

TOP = 8
_NAMED = 2


def _html(page: Page) -> str:
    from sparselens.analyses.report.html import html

    return html(page)


FORMATS: dict[str, Callable[[Page], str]] = {"text": text, "markdown": markdown, "html": _html}


def report(
    trace: str | Path,
    base: str,
    runs: Sequence[str],
    *,
    form: str = "text",
    top: int = TOP,
) -> str:
    """Return the report in one of `FORMATS`; runs are ids, names or policies, `top` heads of each are told in full.

    Raises `ValueError` for a run that does not exist, is the base or ran other prompts, and for an unknown format.
    """
    if form not in FORMATS:
        raise ValueError(f"no report format {form!r}; there are {', '.join(FORMATS)}")
    return FORMATS[form](page(trace, base, runs, top=top))


def page(trace: str | Path, base: str, runs: Sequence[str], *, top: int = TOP) -> Page:
    """Return the report as a page that any form can be drawn from; raises as `report` does."""
    with connect(trace) as connection:
        evidence = Evidence.of(connection, trace, base, runs)
        called = names(evidence)
        return Page(
            _title(evidence, called),
            lead(evidence, called),
            [
                ran(evidence, called),
                losses(evidence, called),
                heads(evidence, called, top),
                roles(evidence, called),
                repair(evidence, called),
                sinks(evidence, called),
                prompts(evidence, called),
                method(evidence),
            ],
        )


def _title(evidence: Evidence, called: dict[str, Verbatim]) -> Words:
    """Return which runs the page is about, counted where they are more than two."""
    runs = evidence.runs
    said = (
        joined([called[run["run_id"]] for run in runs], ", ") if len(runs) <= _NAMED else f"{len(runs)} runs"
    )
    base = evidence.base
    return joined([said, " against ", called[base["run_id"]], " on ", Verbatim(str(base["model"]))], "")
