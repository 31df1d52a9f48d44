"""How attention is computed: the kernel's contract and the registry of kernels.

A kernel is one file in this folder with a constant `KERNEL`; nothing else lists it. A kernel that cannot do a
shape, type or device raises; it never hands the call to another one.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Protocol

from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.selection import Selection
from sparselens.kernels.statistics import NOTHING, Want

__all__ = ["NOTHING", "Attended", "Kernel", "Want", "assigns", "kernel", "kernels"]


@dataclass(eq=False)
class Attended:
    """What an `attend` returns.

    `output` `[batch, heads, q_len, head_dim]` in the query's type; zeros in empty rows. `lse`
    `[batch, heads, q_len]` float32 (float64 for float64 calls): log-sum-exp of the kept scores, sink logit
    included, `-inf` in empty rows. `statistics`: see `kernels/statistics.py`.
    """

    output: Tensor
    lse: Tensor
    statistics: dict[str, Tensor] = field(default_factory=dict)


def refuse_bias(selection: Selection, name: str) -> None:
    """Raise `ValueError` where a selection changes scores, for a kernel of that name that cannot."""
    if selection.biased:
        raise ValueError(
            f"the policy changes scores, which kernel {name!r} does not do; use --kernel reference"
        )


class Kernel(Protocol):
    """How: computes attention of a call over a selection, and the statistics somebody wants."""

    @property
    def name(self) -> str:
        """The name in `--kernel` and in the trace."""

    def attend(self, call: AttentionCall, selection: Selection, want: Want = NOTHING) -> Attended:
        """Attend over selected, allowed keys; raises `ValueError` on what it cannot do."""


@cache
def kernels() -> dict[str, Kernel]:
    """Return the kernels by name: every file here that assigns `KERNEL`; a duplicate name raises."""
    found: dict[str, Kernel] = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if not assigns(path, "KERNEL"):
            continue
        kernel = import_module(f"sparselens.kernels.{path.stem}").KERNEL
        if kernel.name in found:
            raise ValueError(f"two kernels are named {kernel.name!r}")
        found[kernel.name] = kernel
    return found


def kernel(name: str) -> Kernel:
    """Return the kernel of that name; an unknown one raises `ValueError` with the names there are."""
    found = kernels()
    if name not in found:
        raise ValueError(f"no kernel named {name!r}; there are {', '.join(sorted(found))}")
    return found[name]


def assigns(path: Path, constant: str) -> bool:
    """Tell whether a Python file assigns `constant` at its top level, without importing it."""
    targets: list[ast.expr] = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign):
            targets += node.targets
        elif isinstance(node, ast.AnnAssign):
            targets.append(node.target)
    return any(isinstance(target, ast.Name) and target.id == constant for target in targets)
