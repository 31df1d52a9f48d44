"""Calibration artefacts: what a method measured on one model, in a file that knows which model and on what.

A plan is a JSON file that `sparselens calibrate` writes. Its hash covers everything in it, so that a run that was
made with it can say which one it was. A plan belongs to one set of weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

_FIELDS = ("method", "model", "weight_hash", "n_layers", "n_heads", "n_kv_heads", "data", "content")


@dataclass(frozen=True)
class Plan:
    """What a calibration found.

    `method` is the policy it is for; `model`, `weight_hash` and the three sizes the model it was made on; `data` how
    it was made (prompts, seeds, settings, the command); `content` the result, in JSON's types, as the method defines.
    """

    method: str
    model: str
    weight_hash: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    data: Mapping[str, Any] = field(hash=False)
    content: Mapping[str, Any] = field(hash=False)

    @property
    def hash(self) -> str:
        """The sha256 of the fields."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return the fields and `hash`."""
        return asdict(self) | {"hash": self.hash}

    def write(self, path: str | Path) -> Path:
        """Write the plan to `path`; returns it."""
        file = Path(path).expanduser()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
        return file

    def check_model(self, weight_hash: str | None, n_layers: int, n_heads: int, n_kv_heads: int) -> None:
        """Raise `ValueError` where the plan was made for another model; `weight_hash` None compares sizes alone."""
        mine = (self.n_layers, self.n_heads, self.n_kv_heads)
        if mine != (n_layers, n_heads, n_kv_heads):
            raise ValueError(
                f"the plan for {self.method} was made on {self.model} ({mine[0]} layers, {mine[1]} heads, {mine[2]}"
                f" key-value heads); this model has {n_layers}, {n_heads}, {n_kv_heads}: calibrate it"
            )
        if weight_hash is not None and weight_hash != self.weight_hash:
            raise ValueError(
                f"the plan for {self.method} was made on {self.model} with weights {self.weight_hash[:12]};"
                f" this model's are {weight_hash[:12]}: calibrate it"
            )


def read_plan(path: str | Path, method: str) -> Plan:
    """Return the plan in the file `path`; raises `ValueError` unless it is a sound plan for `method`."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"{method}: no plan {str(path)!r}; `sparselens calibrate {method}` makes one")
    plan = _read(file, file.stat().st_mtime_ns)
    if plan.method != method:
        raise ValueError(f"{path} is a plan for {plan.method}, not for {method}")
    return plan


@lru_cache(maxsize=32)
def _read(file: Path, changed: int) -> Plan:
    del changed  # part of the key alone
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the plan {file}: {error}") from error
    if not isinstance(record, dict) or not set(_FIELDS) <= set(record):
        raise ValueError(f"{file} is not a plan: it needs {', '.join(_FIELDS)}")
    plan = Plan(**{name: record[name] for name in _FIELDS})
    if record.get("hash") != plan.hash:
        raise ValueError(f"the plan {file} was changed after it was made: its hash does not fit its content")
    return plan
