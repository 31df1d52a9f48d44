"""A trace whose every number is planted, with texts that mean harm, for the tests of the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sparselens.storage.trace import Trace
from sparselens.storage.writer import RunWriter

HOSTILE = "<script>alert(1)</script>|`x`[a](http://b.c)\n| \x1b[31m\\| ![i](j) &amp; **b** _c_ $d$\u202e"
"""A token that tries markup, table cells, links, a terminal colour and the direction of writing."""
POLICIES = ("a_shape(sink=2,window=4)", "sliding_window(window=6)", "random(density=0.5)")
LAYERS, HEADS, T = 2, 3, 12
ANSWER = (10, 12)
PROMPTS = 6
SCOPES = ("end_to_end", "local_mask", "local_policy")


def loss(prompt: int, run: int) -> float:
    """Answer NLL of a prompt: 0.1 in the base, more in later runs and prompts."""
    return 0.1 + run * (0.5 + 0.25 * prompt)


def error(prompt: int, run: int, layer: int, head: int) -> float:
    """`write_error` on the answer's rows: heads of layer 1 change much, those of layer 0 little."""
    return (0.02 if layer == 0 else 0.5) * (1 + 0.1 * head + 0.05 * prompt) * (1 + 0.2 * run)


def _prompt(part: Any, prompt: int, run: int, run_id: str) -> None:
    """Rows of one prompt of one run."""
    name = HOSTILE if prompt == 0 else f"p{prompt}"
    depth = 0.1 if prompt % 2 else 0.9
    part.add(
        "prompts",
        {
            "name": [name],
            "prompt_set": "needles",
            "grp": f"family {prompt % 3}",
            "n_tokens": [T],
            "bos_mode": "default",
            "metadata": [
                f'{{"depth": {depth}, "family": "family {prompt % 3}", "set": "needles(length=12)"}}'
            ],
            "answer_ids": [[10, 11]],
        },
    )
    position = np.arange(T, dtype=np.uint32)
    text = [HOSTILE if at == 9 else f" t{at}" for at in range(T)]
    part.add("tokens", {"pos": position, "token_id": position, "text": text, "is_special": [False] * T})
    part.add("spans", {"name": "answer", "start": [ANSWER[0]], "stop": [ANSWER[1]]})
    top = position[1:].copy()
    if run and prompt:
        top[-1] = 9  # the run finds the hostile token most probable
    nll = np.full(T - 1, 1.0 + run)
    part.add("predictions", {"pos": position[1:], "nll": nll, "top1_id": top, "top1_p": 0.5})
    scores = {"answer_nll": loss(prompt, run), "nll": 1.0 + run, "answer_forced": float(not (run and prompt))}
    part.add(
        "prompt_scores",
        {"run_id": run_id, "task": "needles", "metric": list(scores), "value": list(scores.values())},
    )
    for layer in range(LAYERS):
        for head in range(HEADS):
            part.add(
                "head_stats",
                {
                    "pattern": "executed",
                    "rows": ["all"],
                    "layer": layer,
                    "head": head,
                    "n_rows": T,
                    "sink_mass": 0.5 - 0.1 * run,
                    "density": 1.0 - 0.2 * run,
                    "density_computed": 1.0 - 0.1 * run,
                },
            )


def _against_base(part: Any, prompt: int, run: int, base: str, run_id: str) -> None:
    """Differences of one prompt."""
    part.add(
        "token_diffs",
        {
            "run_a": base,
            "run_b": run_id,
            "pos": np.arange(1, T, dtype=np.uint32),
            "kl": np.arange(1, T) * 0.01 * run * (1 + prompt),
            "nll_change": float(run),
            "top1_same": np.arange(1, T) < T - (1 if run and prompt else 0),
            "affected": np.arange(1, T) >= 6,
        },
    )
    for scope in SCOPES:
        for layer in range(LAYERS):
            for head in range(HEADS):
                value = error(prompt, run, layer, head) * (1 if scope == "end_to_end" else 0.5)
                part.add(
                    "diffs",
                    {
                        "run_a": base,
                        "run_b": run_id,
                        "scope": scope,
                        "rows": ["span:answer"],
                        "layer": layer,
                        "head": head,
                        "n_rows": 2,
                        "write_error": value,
                        "kept_mass": 0.6 + 0.05 * head,
                        "kept_mass_nosink": 0.3 + 0.05 * head,
                        "js": 0.1 * (head + 1),
                        "top8_overlap": 0.4,
                        "sink_change": 0.1 * head + 0.02 * layer,
                    },
                )


def planted(path: Path, *, runs: int = 3) -> list[str]:
    """Write a base and `runs` runs of six prompts; return their ids, the base first."""
    ids: list[str] = []
    for number, policy in enumerate(("dense", *POLICIES[:runs])):
        meta = {
            "name": policy,
            "policy": policy,
            "model": "planted",
            "weight_hash": "0" * 64,
            "tokenizer_hash": "1" * 64,
            "phase": "both",
            "kernel": "blocked",
            "dtype": "float32",
            "off_label": False,
            "lookahead": False,
            "dense_call_share": float(number == 0),
            "extra": {"n_layers": LAYERS, "n_heads": HEADS},
            "parents": ids[:1],
        }
        with RunWriter.start(path, run_id=f"20260101T00000{number}-planted{number}", meta=meta) as run:
            for prompt in range(PROMPTS):
                with run.part([f"prompt{prompt}"]) as part:
                    _prompt(part, prompt, number, run.run_id)
                    if number:
                        _against_base(part, prompt, number, ids[0], run.run_id)
            run.finish()
        ids.append(run.run_id)
    return ids


def analysis(
    path: Path, name: str, policy: str, args: dict[str, Any], rows: dict[str, Any], **extra: Any
) -> str:
    """Write an analysis run on the planted weights: column blocks by table."""
    meta = {
        "kind": "analysis",
        "name": name,
        "policy": policy,
        "model": "planted",
        "weight_hash": "0" * 64,
        "tokenizer_hash": "1" * 64,
        "args": args,
        "extra": extra,
    }
    with RunWriter.start(Trace.open(path), meta=meta) as run:
        with run.part([]) as part:
            for table, columns in rows.items():
                part.add(table, columns)
        run.finish()
    return run.run_id
