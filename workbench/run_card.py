"""What is written into a run's record: model, prompts, options, threads and command of a capture; a policy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from sparselens.kernels.policy import Policy
from sparselens.workbench.session import attention_layers

if TYPE_CHECKING:
    from sparselens.workbench.job import Options
    from sparselens.workbench.prompt import Prompt
    from sparselens.workbench.session import Session


def run_card(session: Session, prompts: Sequence[Prompt], options: Options, command: str) -> dict[str, Any]:
    """Return the fields of a run record that all runs of one capture share."""
    provenance = session.provenance
    args = asdict(options) | {"metrics": sorted(options.metrics)}
    if options.decode is None:
        del args["decode"]  # as in runs made before there was this option
    return {
        "kind": "capture",
        "model": provenance.name,
        "model_revision": provenance.revision,
        "weight_hash": provenance.weight_hash,
        "quantisation": provenance.quantisation,
        "tokenizer_hash": provenance.tokenizer_hash,
        "template_hash": provenance.template_hash,
        "kernel": options.kernel,
        "dtype": str(session.dtype).removeprefix("torch."),
        "device": str(session.device),
        "threads": torch.get_num_threads(),
        "seed": options.seed,
        "args": {name: list(value) if isinstance(value, tuple) else value for name, value in args.items()},
        "prompt_set": ", ".join(
            dict.fromkeys(prompt.metadata.get("set", prompt.prompt_set) for prompt in prompts)
        ),
        "command": command,
        "extra": {
            "n_layers": session.n_layers,
            "n_heads": session.n_heads,
            "n_kv_heads": session.n_kv_heads,
            "head_dim": session.head_dim,
            "scores": _scores(session),
        },
    }


def policy_card(policy: Policy) -> dict[str, Any]:
    """Return the fields of a run record that say which policy ran; with its source, unless the package has it."""
    ours = type(policy).__module__.startswith("sparselens.kernels.policies.")
    return {
        "policy": str(policy),
        "policy_json": json.dumps(policy.to_json()),
        "policy_hash": policy.hash,
        "policy_source": None if ours else policy.source_code,
        "phase": policy.phase,
        "off_label": policy.off_label,
        "lookahead": policy.lookahead,
    }


def _scores(session: Session) -> list[dict[str, float | None]]:
    """Return, for each layer, what turns q and k into scores: `scale`, `softcap`, the native `window` (tokens).

    With the selection this is all that a page needs to draw exact cells from kept q and k.
    """
    return [
        {
            "scale": float(getattr(layer, "scaling", session.head_dim**-0.5)),
            "softcap": getattr(layer, "attn_logit_softcapping", None),
            "window": getattr(layer, "sliding_window", None),
        }
        for layer in attention_layers(session.model)
    ]
