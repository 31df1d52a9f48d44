"""`analyse ablate`: which heads break the answer when they are cut in the base.

`zero`: a head hands on nothing. `mean`: in every row what it hands on on average over the ranking prompts, rows from 8
on. `uniform`: the average of all the values that a row may see (the masking of Wu et al., arXiv 2404.15574).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparselens.analyses.analysis import Analysis, Findings, Setting
from sparselens.analyses.cause.plan import Cause
from sparselens.analyses.cause.study import cost, show
from sparselens.analyses.cause.study import find as found_under
from sparselens.workbench.intervention import ABLATIONS


@dataclass(frozen=True)
class Ablate(Cause):
    """Heads are cut in the `base`; `policy` is what `write_error` and `kept_mass` rank by."""

    kind: str = "mean"

    kinds: ClassVar[tuple[str, ...]] = ABLATIONS


def find(setting: Setting) -> Findings:
    """Cut sets of heads in the base."""
    return found_under(setting, setting.parameters.base)


ANALYSIS = Analysis(
    name="ablate",
    question="which heads, cut, break the answer, and do random ones?",
    parameters=Ablate,
    find=find,
    cost=cost,
    show=show,
)
