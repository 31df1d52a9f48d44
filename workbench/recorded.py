"""The model and the policy of a run, found again from its record. Weights and tokenizer must be the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparselens.storage.trace import Run
    from sparselens.workbench.session import Session


def recorded_session(
    run: Run, model: str | None = None, *, device: str | None = None, progress: bool = False
) -> Session:
    """Return a session on the model that `run` ran, in its dtype; on its device unless another one is given.

    `model` says where the weights lie now, if elsewhere. Raises `ValueError` where the record names no model, where
    none is found under its name, and where the one found has other weights or another tokenizer.
    """
    from sparselens.workbench.models import MODELS, load

    record = run.record
    name = model or record.model
    if name is None:
        raise ValueError(f"run {run.run_id} does not say which model it ran")
    from_hub = model is None and name not in MODELS and not Path(name).exists()
    try:
        session = load(
            name,
            revision=record.model_revision if from_hub else None,
            dtype=record.dtype or "float32",
            device=device or record.device or "auto",
            progress=progress,
        )
    except (OSError, ValueError) as error:
        if model is not None:
            raise
        raise ValueError(
            f"the model of run {run.run_id} cannot be loaded as it was: {error}; --model says where its weights lie now"
        ) from error
    require_recorded_model(session, run)
    return session


def require_recorded_model(session: Session, run: Run) -> None:
    """Raise `ValueError` unless a session has the weights and the tokenizer that `run` ran on."""
    for what in ("weight_hash", "tokenizer_hash"):
        now, then = getattr(session.provenance, what), getattr(run.record, what)
        if now != then:
            name = session.provenance.name
            raise ValueError(f"{name} is not the model of run {run.run_id}: {what} {now}, recorded {then}")


def recorded_policy(run: Run) -> Any:
    """Return the policy of a run."""
    from sparselens.kernels.policy import Policy, parse

    if run.record.policy_json:
        return Policy.from_json(json.loads(run.record.policy_json))
    return parse(run.record.policy or "dense")
