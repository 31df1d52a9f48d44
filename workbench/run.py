"""A run: the handle that a capture returns, and the run while it is being made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparselens.kernels.policy import Policy
from sparselens.storage.reader import connect
from sparselens.storage.schema import table as declared
from sparselens.storage.writer import RunWriter
from sparselens.workbench.face import public
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

    def heads(self, metric: str = "", **over: Any) -> Any:
        """Return the layer × head grid of a score of this run as a figure; see `sl.run_heads`."""
        return public("run_heads")(self.trace, self.run_id, metric, **over)

    def head(self, name: str, *, against: str = "") -> HeadHandle:
        """Return a head (`L18H6`) of this run, beside its base unless `against` names another run."""
        return HeadHandle(name, self.run_id, self.trace, against)


@dataclass(frozen=True)
class HeadHandle:
    """A head of a run, and the run it is looked at beside; an empty text means the run's own base."""

    name: str
    run_id: str
    trace: Path
    against: str = ""

    def view(self, prompt: str = "", **how: Any) -> Any:
        """Return text, keys and maps of this head on a prompt (the first, unless named); see `sl.show_head`."""
        return public("show_head")(
            self.trace, self.run_id, self.name, against=self.against, prompt=prompt, **how
        )


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
