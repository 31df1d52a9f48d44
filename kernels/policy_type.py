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
from sparselens.kernels.memory import Memory, Removal
from sparselens.kernels.plan import Plan
from sparselens.kernels.selection import Everything, Selection

__all__ = ["EVIDENCE", "PHASES", "SHARED", "Memory", "Policy", "Removal", "as_json", "field_hints"]

PHASES = ("prefill", "decode", "both")
SHARED = ("phase", "dense_below")
EVIDENCE = {
    "code": "read in the authors' code",
    "copies": "read in others' code, the authors' could not be",
    "paper": "read in the paper alone",
    "abstract": "known from abstract and summaries; details are ours",
    "reference": "a reference of this project",
}


@dataclass(frozen=True)
class Policy(ABC):
    """Which keys a query attends to, within what the model allows.

    Fields are the hyper-parameters. `phase`: where the policy acts, `prefill`, `decode` or `both`; elsewhere
    everything is kept. `dense_below`: everything is kept while there are fewer keys than this; 0 = never.
    `name` is the name in call strings, `source` the paper or code it follows, `evidence` how far that could be
    read (see `EVIDENCE`), `card` what to know before using it (the paper's defaults, what the authors' code does
    differently), `short_input` where that code falls back to dense attention, `budget` the fields that a wider
    budget changes (see `wider`), `off_label` that the paper trained the model with it, `lookahead` that a row's
    keys may depend on later queries. Raises `ValueError` on a phase that does not exist.
    """

    phase: str = field(default="both", kw_only=True)
    dense_below: int = field(default=0, kw_only=True)

    name: ClassVar[str]
    budget: ClassVar[tuple[str, ...]] = ()
    off_label: ClassVar[bool] = False
    lookahead: ClassVar[bool] = False
    source: ClassVar[str] = ""
    evidence: ClassVar[str] = "code"
    short_input: ClassVar[str] = ""
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

    @property
    def reads_layers(self) -> bool:
        """Whether a layer reads what an earlier one left in `memory`; as the policies within it unless said."""
        return any(policy.reads_layers for policy in self._within())

    def watch(self, call: AttentionCall, memory: Memory) -> None:
        """See a call on which the policy does not act: here one that decodes takes its statistics of the prompt."""
        del call, memory

    def choose(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return `select` where the policy applies; elsewhere let it `watch`, and return `Everything`."""
        if self.applies(call):
            return self.select(call, memory)
        self.watch(call, memory)
        return Everything()

    def selection_for(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return what `choose` returns, and count it in `memory`."""
        selection = self.choose(call, memory)
        memory.calls += 1
        memory.dense_calls += isinstance(selection, Everything)
        return selection

    def wider(self, factor: float) -> Policy:
        """Return the policy with its budget `factor` times as wide (narrower below 1).

        Every field of `budget` is multiplied; whole numbers are rounded, shares end at 1. A policy whose
        threshold keeps more when it is lower says so by its own `wider`. Raises `ValueError` without a budget.
        """
        self.require(bool(self.budget), "it names no budget that could be wider")
        values: dict[str, Any] = {}
        for name in self.budget:
            value = getattr(self, name)
            values[name] = (
                min(value * factor, 1.0) if isinstance(value, float) else max(round(value * factor), 1)
            )
        return replace(self, **values)

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The calibration artefacts that this policy, and those within it, were made with."""
        return tuple(plan for policy in self._within() for plan in policy.plans)

    @property
    def decodes_only(self) -> bool:
        """Whether nothing is dropped before the first decoded token."""
        within = self._within()
        return self.phase == "decode" or (bool(within) and all(policy.decodes_only for policy in within))

    def _within(self) -> tuple[Policy, ...]:
        """Return the policies that are fields of this one."""
        values = (getattr(self, entry.name) for entry in fields(self))
        return tuple(value for value in values if isinstance(value, Policy))

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
        """Return `name`, `call` (the call string), `parameters`, `hash` (sha256 of the source), and any `plans`."""
        parameters = {key: as_json(value) for key, value in self.parameters().items()}
        record = {"name": self.name, "call": str(self), "parameters": parameters, "hash": self.hash}
        return record | ({"plans": [plan.to_json() for plan in self.plans]} if self.plans else {})

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
