"""The two runs that fidelity is about: a captured run and the base that was captured with it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sparselens.analyses.comparison import Comparison, queries
from sparselens.analyses.diff import capture_command
from sparselens.analyses.runs import find_run
from sparselens.storage.reader import Connection
from sparselens.storage.trace import Run, Trace
from sparselens.workbench.recorded import recorded_policy


@dataclass(frozen=True, eq=False)
class Pair:
    """A run and its base, in one capture."""

    base: Run
    run: Run

    @classmethod
    def of(cls, trace: Trace, connection: Connection, run_id: str) -> Pair:
        """Return the pair of a run; `ValueError` where it is no capture, is a base, or was captured without one."""
        run = trace.run(run_id)
        name = run.record.name or run_id
        if run.record.kind != "capture":
            raise ValueError(f"{name} is a run of kind {run.record.kind}: fidelity is of a captured run")
        if run.status != "complete":
            raise ValueError(f"run {name} is {run.status}: finish it first (sparselens capture … --resume)")
        children = [
            other.record.name
            for other in trace.runs()
            if other.record.kind == "capture" and run.run_id in other.record.parents
        ]
        if children and not run.record.parents:
            others = ", ".join(map(str, children))
            raise ValueError(
                f"run {name} is itself a base: give a run that was captured against it ({others})"
            )
        if run.record.parents:
            pair = cls(trace.run(run.record.parents[0]), run)
            if pair.ask(connection, "stored").to_pylist()[0]["errors"]:
                return pair
        raise ValueError(_apart(trace, connection, run))

    @property
    def ids(self) -> dict[str, str]:
        """Both ids, as statements name them."""
        return {"base": self.base.run_id, "run": self.run.run_id}

    def ask(self, connection: Connection, name: str, **more: Any) -> Any:
        """Return a statement of `fidelity.sql` as an arrow table, `$base` and `$run` filled in."""
        text = queries("fidelity/fidelity.sql")[name]
        used = {key: value for key, value in (self.ids | more).items() if f"${key}" in text}
        return connection.sql(text, used, max_rows=None).arrow()

    @cached_property
    def base_policy(self) -> Any:
        """The base's policy."""
        return recorded_policy(self.base)

    @cached_property
    def policy(self) -> Any:
        """The run's policy."""
        return recorded_policy(self.run)

    @property
    def kernel(self) -> str:
        """The kernel that both ran on."""
        return self.run.record.kernel or "blocked"

    @property
    def params(self) -> dict[str, Any]:
        """What every score's params say."""
        record = self.run.record
        return {
            "policy": record.policy,
            "base": self.base.record.policy,
            "base_run": self.base.run_id,
            "kernel": self.kernel,
            "dtype": record.dtype,
        }


def _apart(trace: Trace, connection: Connection, run: Run) -> str:
    """Return what to do about a run without stored differences, in one line."""
    row = find_run(connection, run.run_id)
    bases = [
        other
        for other in trace.runs()
        if other.record.weight_hash == run.record.weight_hash
        and other.record.kind == "capture"
        and str(other.record.policy).partition("(")[0] == "dense"
        and other.run_id != run.run_id
    ]
    base = find_run(connection, bases[-1].run_id) if bases else row | {"policy": "dense"}
    name = run.record.name or run.run_id
    with_base = (
        f"; `sparselens diff {base['run_id']} {run.run_id}` says what the tables allow" if bases else ""
    )
    command = capture_command(Comparison(connection, base, row), Path(trace.path))
    return (
        f"run {name} was captured without its base, so no differences are stored{with_base}; this captures both"
        f" together: {command}"
    )
