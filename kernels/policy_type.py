"""What every policy is: a frozen dataclass of its parameters, with a phase, a card, and a call string."""

from __future__ import annotations

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.selection import Everything, Selection

PHASES = ("prefill", "decode", "both")
SHARED = ("phase", "dense_below")


@dataclass(eq=False)
class Memory:
    """What a policy leaves between the layers and steps of one forward pass or generation.

    `calls` and `dense_calls` count the selections asked for and those that kept everything.
    """

    calls: int = 0
    dense_calls: int = 0
    _layers: dict[tuple[int, str], Any] = field(default_factory=dict)

    def get(self, layer: int, key: str, default: Any = None) -> Any:
        """Return what was left under `key` for `layer`, or `default`."""
        return self._layers.get((layer, key), default)

    def set(self, layer: int, key: str, value: Any) -> None:
        """Leave `value` under `key` for `layer`."""
        self._layers[layer, key] = value

    def __bool__(self) -> bool:
        """Tell whether a policy has left something here."""
        return bool(self._layers)

    def reset(self) -> None:
        """Forget everything, counts included."""
        self.calls = self.dense_calls = 0
        self._layers.clear()


@dataclass(frozen=True)
class Policy(ABC):
    """Which keys a query attends to, within what the model allows.

    Fields are the hyper-parameters. `phase`: where the policy acts, `prefill`, `decode` or `both`; elsewhere
    everything is kept. `dense_below`: everything is kept while there are fewer keys than this; 0 = never.
    `name` is the name in call strings, `source` the paper or code it follows, `card` what to know before
    using
    it (the paper's defaults, what the authors' code does differently), `budget` the fields that a wider budget
    multiplies, all by one factor (numbers of keys, shares), `off_label` that the paper trained the
    model with it, `lookahead` that a row's keys may depend on later queries. Raises `ValueError` on a phase
    that does not exist.
    """

    phase: str = field(default="both", kw_only=True)
    dense_below: int = field(default=0, kw_only=True)

    name: ClassVar[str]
    budget: ClassVar[tuple[str, ...]] = ()
    off_label: ClassVar[bool] = False
    lookahead: ClassVar[bool] = False
    source: ClassVar[str] = ""
    card: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if self.phase not in PHASES:
            raise ValueError(f"{self.name}: phase is one of {', '.join(PHASES)}, not {self.phase!r}")
        if self.dense_below < 0:
            raise ValueError(f"{self.name}: dense_below is 0 or more, not {self.dense_below}")

    @abstractmethod
    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return the keys kept for each query of `call`."""

    @property
    def reads_tensors(self) -> bool:
        """Whether the choice depends on queries and keys; False when positions alone decide it."""
        return True

    def applies(self, call: AttentionCall) -> bool:
        """Tell whether the policy acts on this call, by its phase and `dense_below`."""
        return self.phase in ("both", call.phase) and call.k_len >= self.dense_below

    def selection_for(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return `select` where the policy applies, else `Everything`; counts both in `memory`."""
        selection = self.select(call, memory) if self.applies(call) else Everything()
        memory.calls += 1
        memory.dense_calls += isinstance(selection, Everything)
        return selection

    def require(self, holds: bool, rule: str) -> None:
        """Raise `ValueError` naming the policy and the rule, unless it holds."""
        if not holds:
            raise ValueError(f"{self.name}: {rule}")

    def parameters(self) -> dict[str, Any]:
        """Return the fields and their values; `phase`, `dense_below` last and only if not the default."""
        default = {entry.name: entry.default for entry in fields(self) if entry.name in SHARED}
        names = sorted((entry.name for entry in fields(self)), key=SHARED.__contains__)
        values = {name: getattr(self, name) for name in names}
        return {key: value for key, value in values.items() if key not in default or value != default[key]}

    def hints(self) -> dict[str, Any]:
        """Return the fields and their types."""
        return field_hints(type(self))

    def __call__(self, **values: Any) -> Policy:
        """Return the policy with other values in some fields."""
        return replace(self, **values)

    @property
    def source_code(self) -> str:
        """The text of the file that defines the policy."""
        return Path(inspect.getfile(type(self))).read_text(encoding="utf-8")

    @property
    def hash(self) -> str:
        """The sha256 of `source_code`."""
        return hashlib.sha256(self.source_code.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return `name`, `call` (the call string), `parameters`, and `hash`, the sha256 of the source."""
        parameters = {key: as_json(value) for key, value in self.parameters().items()}
        return {"name": self.name, "call": str(self), "parameters": parameters, "hash": self.hash}

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> Policy:
        """Return the policy of a `to_json` record: from `call`, or from `name` and `parameters`."""
        from sparselens.kernels.policy_text import from_record

        return from_record(record)

    def __str__(self) -> str:
        """Return the call that makes this policy."""
        from sparselens.kernels.policy_text import write_call

        return write_call(self.name, self.parameters())


def field_hints(kind: type[Policy]) -> dict[str, Any]:
    """Return the fields of a policy class and their types, `phase` and `dense_below` last."""
    hints = get_type_hints(kind)
    names = sorted((entry.name for entry in fields(kind)), key=SHARED.__contains__)
    return {name: hints[name] for name in names}


def as_json(value: Any) -> Any:
    """Return a field's value in JSON's types; a nested policy becomes its own record."""
    if isinstance(value, Policy):
        return value.to_json()
    if isinstance(value, tuple):
        return [as_json(item) for item in value]
    return value
