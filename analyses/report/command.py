"""The commands that a report names: what would measure what the trace does not say."""

from __future__ import annotations

import shlex
from typing import Any

from sparselens.analyses.comparison import Comparison
from sparselens.analyses.diff import capture_command
from sparselens.analyses.report.data import Evidence

AGAINST_BASE = ("restore", "ablate")
"""Analyses that run the base too; it is dense unless they are told."""


def analyse(evidence: Evidence, name: str, run: dict[str, Any]) -> str:
    """Return the command that asks an analysis of a run's model, under its policy where that is not the base's."""
    base = str(evidence.base["policy"])
    call = f"{name}(base={base!r})" if name in AGAINST_BASE and base != "dense" else name
    words = ["sparselens", "analyse", call, "--model", str(run["model"])]
    if run["policy"] != evidence.base["policy"]:
        words += ["--policy", str(run["policy"])]
    return shlex.join([*words, "--trace", str(evidence.trace)])


def read_tables(evidence: Evidence, name: str, run: dict[str, Any]) -> str:
    """Return the command of an analysis that reads the tables of a run."""
    words = ["sparselens", "analyse", name, "--run", run["run_id"], "--trace", str(evidence.trace)]
    return shlex.join(words)


def difference(evidence: Evidence, run: dict[str, Any]) -> str:
    """Return the command that fills what two captures say about each other."""
    words = ["sparselens", "diff", evidence.base["run_id"], run["run_id"], "--trace", str(evidence.trace)]
    return shlex.join(words)


def capture(evidence: Evidence, run: dict[str, Any], *more: str) -> str:
    """Return the command that captures base and run again, paired, with `more` options."""
    found = capture_command(Comparison(evidence.connection, evidence.base, run), evidence.trace)
    return f"{found} {shlex.join(more)}" if more else found
