"""A run: the handle that a capture returns, and the run while it is being made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparselens.kernels.policy import Policy
from sparselens.storage.reader import connect
from sparselens.storage.schema import table as declared
from sparselens.storage.writer import RunWriter
from sparselens.workbench.verify import Verdict, Verifier


@dataclass(frozen=True)
class RunHandle:
    """A run in a trace: its id, its name, and where it lies."""

    run_id: str
    name: str
    policy: str
    trace: Path
    verdict: Verdict | None = None

    def sql(self, text: str) -> Any:
        """Ask the run's trace in SQL (one SELECT); returns a result with `.df()` and `.arrow()`."""
        return connect(self.trace).sql(text)

    def df(self, table: str = "head_stats") -> Any:
        """Return this run's rows of a table as a data frame."""
        return self.sql(f"SELECT * FROM {declared(table).name} WHERE run_id = '{self.run_id}'").df()


@dataclass(eq=False)
class Making:
    """One run in the making; without a writer where it was complete before (then it only runs as a base)."""

    policy: Policy
    run_id: str
    writer: RunWriter | None
    name: str
    is_base: bool
    verifier: Verifier | None
    done: set[str]
    dense_calls: int = 0
    calls: int = 0
    seconds: float = 0.0
    finished: bool = False
