"""`analyse restore`: which heads repair what a sparse policy broke when they are given back.

`run_dense`: a head attends densely to what now arrives. `patch_pattern`: it weighs current values by the base's
pattern. `patch_z`: it hands on what it did in the base. Ranked heads are compared with random heads of the same layers
and with the same policy at the density that they cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparselens.analyses.analysis import Analysis, Findings, Setting
from sparselens.analyses.cause.plan import Cause
from sparselens.analyses.cause.study import cost, show
from sparselens.analyses.cause.study import find as found_under
from sparselens.workbench.intervention import RESTORES


@dataclass(frozen=True)
class Restore(Cause):
    """Heads are given back under the policy."""

    kind: str = "run_dense"
    check: int = 4

    kinds: ClassVar[tuple[str, ...]] = RESTORES


def find(setting: Setting) -> Findings:
    """Give sets of heads back under the policy."""
    return found_under(setting, setting.parameters.policy)


ANALYSIS = Analysis(
    name="restore",
    question="which heads, given back, repair what the policy broke, and do random ones?",
    parameters=Restore,
    find=find,
    cost=cost,
    show=show,
)
