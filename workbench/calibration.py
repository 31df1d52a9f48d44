"""Calibration: what a method measures on a model before it can run, as a `Plan` in a file.

A calibration is one file in `workbench/calibrations/` with a constant `CALIBRATION`, a frozen dataclass whose fields
are its arguments, written as a call: `duo_attention(steps=100)`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar

from sparselens.kernels.plan import Plan
from sparselens.workbench.call_text import arguments, built, defaults
from sparselens.workbench.plug_in import plug_ins

if TYPE_CHECKING:
    from sparselens.workbench.session import Session

Say = Callable[[str], None]


@dataclass(frozen=True)
class Calibration(ABC):
    """How the plan of one method is made: arguments as fields, each with a default.

    `method` is the policy that the plan is for, `summary` one line on what is measured.
    """

    method: ClassVar[str]
    summary: ClassVar[str]

    @abstractmethod
    def measure(self, session: Session, say: Say) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the plan's `content` and what to record of its `data`, both in JSON's types.

        `say` takes a line of progress. Raises `ValueError` where the model or the arguments do not allow it.
        """

    def plan(self, session: Session, say: Say = lambda _: None) -> Plan:
        """Measure on the session's model and return the plan."""
        content, data = self.measure(session, say)
        provenance = session.provenance
        return Plan(
            method=self.method,
            model=provenance.name,
            weight_hash=provenance.weight_hash,
            n_layers=session.n_layers,
            n_heads=session.n_heads,
            n_kv_heads=session.n_kv_heads,
            data={"arguments": _plain(asdict(self)), **data},
            content=content,
        )

    @classmethod
    def parameters(cls) -> dict[str, Any]:
        """The parameters and their defaults."""
        return defaults(cls)


@cache
def calibrations() -> dict[str, type[Calibration]]:
    """Return the calibrations by method; raises `ValueError` where two files are for the same one."""
    from sparselens.workbench import calibrations as folder

    return plug_ins(folder, "CALIBRATION", attrgetter("method"))


def calibration(text: str) -> Calibration:
    """Return the calibration that a call describes, `minference(n=2)`.

    Raises `ValueError` on an unknown method or argument, with those there are, and on a value of another type.
    """
    name, _, rest = text.strip().partition("(")
    if name not in calibrations():
        raise ValueError(f"no calibration for {name!r}; there are {', '.join(calibrations()) or 'none'}")
    kind = calibrations()[name]
    return built(kind, name, kind.parameters(), arguments(name, rest.removesuffix(")")))


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
