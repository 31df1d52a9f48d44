"""A user's own policy: any function of `(call, memory)` under `@policy`.

    @sl.policy
    def every_other(call, memory, *, stride: int = 2):
        return Bits.of(call.key_positions[None, :, None, :] % stride == 0 …)

The function returns a `Selection` or a bool tensor `[batch or 1, heads or 1, q_len, k_len]`. Its keyword-only
parameters are the policy's fields: `every_other(stride=3)` is another policy of the same kind.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, get_type_hints

from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.policy_registry import remember
from sparselens.kernels.policy_type import SHARED, Memory, Policy
from sparselens.kernels.selection import Bits, Selection

SelectFunction: TypeAlias = Callable[..., Selection | Tensor]


@dataclass(frozen=True)
class Function(Policy):
    """A policy made of a function; `values` are the keyword parameters that differ from its defaults."""

    function: SelectFunction
    name: str  # type: ignore[misc]  # a class variable elsewhere: here each function has its own
    text: str
    values: tuple[tuple[str, Any], ...] = ()

    def __call__(self, **values: Any) -> Function:
        """Return the policy with other parameters; raises `ValueError` on one the function does not have."""
        own = {key: value for key, value in values.items() if key not in SHARED}
        unknown = set(own) - set(self.hints())
        if unknown:
            raise ValueError(f"{self.name} has no field {sorted(unknown)}; it has {', '.join(self.hints())}")
        merged = tuple(sorted({**dict(self.values), **own}.items()))
        return replace(self, values=merged, **{key: values[key] for key in values if key in SHARED})

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return what the function returns; raises `TypeError` when that is neither selection nor mask."""
        kept = self.function(call, memory, **dict(self.values))
        if isinstance(kept, Selection):
            return kept
        if isinstance(kept, Tensor) and kept.ndim == 4 and kept.shape[-2:] == (call.q_len, call.k_len):
            return Bits.of(kept.bool())
        raise TypeError(f"{self.name} returned {type(kept).__name__}, not a Selection or a 4-d bool mask")

    def parameters(self) -> dict[str, Any]:
        """Return the function's parameters and their values, defaults included."""
        shared = {key: value for key, value in super().parameters().items() if key in SHARED}
        return {**_defaults(self.function), **dict(self.values), **shared}

    def hints(self) -> dict[str, Any]:
        """Return the fields and their types: the function's keyword-only ones, `phase`, `dense_below`."""
        hints = get_type_hints(self.function)
        own = {key: hints.get(key, type(value)) for key, value in _defaults(self.function).items()}
        return {**own, "phase": str, "dense_below": int}

    def at(self, reference: str) -> Function:
        """Return the policy under the name `path/file.py:NAME`."""
        return replace(self, name=reference)

    @property
    def source_code(self) -> str:
        """The text of the function."""
        return self.text


def _defaults(function: SelectFunction) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {entry.name: entry.default for entry in parameters if entry.kind is entry.KEYWORD_ONLY}


def policy(function: SelectFunction) -> Function:
    """Make a policy of a function `(call, memory, *, field=default, …) -> Selection or bool mask`.

    Its name, source text and the text's sha256 are kept with it and stored with every run. Raises
    `ValueError`
    when a keyword parameter has no default, or the name belongs to another policy.
    """
    for name, default in _defaults(function).items():
        if default is inspect.Parameter.empty:
            raise ValueError(f"{function.__name__}: the parameter {name!r} needs a default")
    try:
        text = inspect.getsource(function)
    except OSError:
        text = f"# the source of {function.__name__} is not available"
    made = Function(name=function.__name__, function=function, text=text)
    remember(made)
    return made
