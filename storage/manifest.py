"""What a run says about itself: `run.json` when it starts, `manifest.json` when it is complete."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, get_type_hints

from sparselens.storage.schema import SCHEMA_VERSION

PACKAGES = (
    "sparselens",
    "torch",
    "transformers",
    "transformer-lens",
    "numpy",
    "duckdb",
    "pyarrow",
    "triton",
    "tokenizers",
)


def package_versions() -> dict[str, str]:
    """Versions of python and of the packages that decide numbers; absent ones are left out."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def now() -> str:
    """The time in UTC as ISO 8601 with microseconds."""
    return datetime.now(UTC).isoformat()


@dataclass(frozen=True)
class RunRecord:
    """One run's provenance and outcome; the columns of `runs`, and nothing that the reader derives.

    `folders` names the folders that hold the rows (readers follow it), `None` while the run is not complete.
    `args` and `extra` are JSON objects.
    """

    run_id: str
    name: str | None = None
    kind: str = "capture"
    parents: tuple[str, ...] = ()
    model: str | None = None
    model_revision: str | None = None
    weight_hash: str | None = None
    quantisation: str | None = None
    tokenizer_hash: str | None = None
    template_hash: str | None = None
    policy: str | None = None
    policy_json: str | None = None
    policy_source: str | None = None
    policy_hash: str | None = None
    calibration_hash: str | None = None
    phase: str | None = None
    off_label: bool | None = None
    lookahead: bool | None = None
    dense_call_share: float | None = None
    kernel: str | None = None
    dtype: str | None = None
    device: str | None = None
    threads: int | None = None
    seed: int | None = None
    args: dict[str, Any] = field(default_factory=dict)
    prompt_set: str | None = None
    created_at: str = field(default_factory=now)
    finished_at: str | None = None
    seconds: float | None = None
    verify_kernel: bool | None = None
    verify_logits: bool | None = None
    verify_calls: bool | None = None
    verify_detail: dict[str, Any] | None = None
    packages: dict[str, str] = field(default_factory=package_versions)
    command: str = field(default_factory=lambda: " ".join(sys.argv) if sys.argv[0] else "")
    extra: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION
    folders: tuple[str, ...] | None = None

    @classmethod
    def of(cls, run_id: str, meta: Mapping[str, Any]) -> RunRecord:
        """A record with these fields; ValueError on a name or type that a record does not have."""
        return cls(run_id=run_id).updated({k: v for k, v in meta.items() if k != "run_id"})

    def updated(self, meta: Mapping[str, Any]) -> RunRecord:
        """A copy with these fields changed; ValueError on a name or type that a record does not have."""
        allowed = [
            each.name for each in fields(self) if each.name not in ("run_id", "schema_version", "folders")
        ]
        unknown = sorted(set(meta) - set(allowed))
        if unknown:
            raise ValueError(f"a run has no field {', '.join(unknown)}; it has {', '.join(allowed)}")
        return _checked(replace(self, **{name: _plain(name, value) for name, value in meta.items()}))

    def with_folders(self, names: tuple[str, ...]) -> RunRecord:
        """A copy that says which folders hold the rows: the record of a complete run."""
        return replace(self, folders=names)

    def to_json(self) -> bytes:
        """The record as a JSON object, readable by people; equal records give equal bytes."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return (json.dumps(values, indent=1, ensure_ascii=False, sort_keys=False) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> RunRecord:
        """The record of such an object, fields it does not know left out; ValueError if it is broken."""
        values = json.loads(data)
        if not isinstance(values, dict) or "run_id" not in values:
            raise ValueError("not a run record: no run_id")
        known = {each.name for each in fields(cls)}
        return _checked(cls(**{name: _plain(name, value) for name, value in values.items() if name in known}))


_TUPLES = ("parents", "folders")
_HINTS = get_type_hints(RunRecord)


def _plain(name: str, value: Any) -> Any:
    """Lists as tuples where the record has tuples."""
    return tuple(value) if name in _TUPLES and isinstance(value, list | tuple) else value


def _checked(record: RunRecord) -> RunRecord:
    """The record, if every field has its declared type and can be written as JSON; else ValueError."""
    for name, hint in _HINTS.items():
        value = getattr(record, name)
        kinds = tuple(getattr(each, "__origin__", each) for each in getattr(hint, "__args__", ()) or (hint,))
        kinds = (dict,) if getattr(hint, "__origin__", None) is dict else kinds
        kinds = (tuple,) if getattr(hint, "__origin__", None) is tuple else kinds
        if float in kinds:
            kinds = (*kinds, int)
        if not isinstance(value, kinds):
            raise ValueError(f"run field {name} must be {hint}, not {value!r}")
    try:
        record.to_json()
    except TypeError as error:
        raise ValueError(f"a run's fields must be JSON: {error}") from error
    return record
