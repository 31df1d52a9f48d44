"""The rows that are not a layer's: predictions, scores, the prompt itself, and the part they go to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np

from sparselens.kernels.policy import Removal
from sparselens.storage.part import Part
from sparselens.workbench.probe import Columns, Write
from sparselens.workbench.prompt import Prompt
from sparselens.workbench.readout import Predictions
from sparselens.workbench.run import Making


def add_predictions(
    part: Part,
    found: Predictions,
    affected: np.ndarray,
    prompt: Prompt,
    run: Making,
    base_id: str | None,
) -> None:
    """Add `predictions`, and `token_diffs` for a run that is compared with the base `base_id`.

    `affected [tokens]` says of each predicting row whether some head dropped a key in it.
    """
    last = len(prompt.token_ids) - 1
    if last < 1:
        return
    positions: np.ndarray = np.arange(1, last + 1, dtype=np.uint32)
    part.add(
        "predictions",
        {
            "pos": positions,
            "nll": found.nll[:last],
            "top1_id": found.top1_id[:last],
            "top1_p": found.top1_p[:last],
        },
    )
    if base_id is not None and not run.is_base:
        part.add(
            "token_diffs",
            {
                "run_a": base_id,
                "run_b": run.run_id,
                "pos": positions,
                "kl": found.kl[:last],
                "nll_change": found.nll_change[:last],
                "top1_same": found.top1_same[:last],
                "affected": affected[:last],
            },
        )


def add_removals(
    write: Write, removals: Sequence[Removal], heads: Mapping[int, tuple[int, ...]] | None, group: int
) -> None:
    """Add what left the cache to `removals`: one row a key, of the key-value heads of recorded `heads` (None: all)."""
    shown = [
        entry
        for entry in removals
        if heads is None or entry.kv_head in {head // group for head in heads.get(entry.layer, ())}
    ]
    if not shown:
        return
    sizes = [len(entry.positions) for entry in shown]
    columns: Columns = {
        name: np.repeat(np.asarray([getattr(entry, name) for entry in shown], np.uint32), sizes)
        for name in ("layer", "kv_head", "step")
    }
    positions = np.concatenate([entry.positions.cpu().numpy() for entry in shown]).astype(np.uint32)
    write("removals", columns | {"k_pos": positions})


def add_scores(part: Part, scores: dict[str, float], prompt: Prompt, run: Making) -> None:
    """Add the prompt's own numbers to `prompt_scores`; the task is the prompt set's name."""
    names = list(scores)
    part.add(
        "prompt_scores",
        {
            "run_id": run.run_id,
            "task": prompt.prompt_set.partition("(")[0],
            "metric": names,
            "value": np.asarray([scores[name] for name in names]),
        },
    )


def part_of(run: Making, prompt: Prompt) -> Part:
    """Return the part that takes everything about a prompt: left without error, it is there in all tables."""
    if run.writer is None:
        raise ValueError(f"run {run.run_id} is complete")
    return run.writer.part([prompt.id])


def add_prompt(part: Part, prompt: Prompt) -> None:
    """Add the prompt, its tokens and its spans."""
    tokens = len(prompt.token_ids)
    part.add("prompts", prompt_columns(prompt))
    part.add(
        "tokens",
        {
            "prompt_id": prompt.id,
            "pos": np.arange(tokens, dtype=np.uint32),
            "token_id": np.asarray(prompt.token_ids, np.uint32),
            "text": list(prompt.pieces),
            "is_special": list(prompt.special),
        },
    )
    if prompt.spans:
        part.add(
            "spans",
            {
                "prompt_id": prompt.id,
                "name": list(prompt.spans),
                "start": [start for start, _ in prompt.spans.values()],
                "stop": [stop for _, stop in prompt.spans.values()],
            },
        )


def prompt_columns(prompt: Prompt) -> Columns:
    """Return the `prompts` row of a prompt."""
    return {
        "prompt_id": [prompt.id],
        "name": [prompt.name],
        "prompt_set": [prompt.prompt_set],
        "grp": [prompt.group],
        "pair_id": [prompt.pair_id],
        "n_tokens": [len(prompt.token_ids)],
        "bos_mode": [prompt.bos_mode],
        "template": [prompt.template],
        "metadata": [json.dumps(prompt.metadata)],
        "answer_ids": [list(prompt.answer_ids)],
        "foil_ids": [list(prompt.foils)],
    }
