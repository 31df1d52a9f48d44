"""A trace written by hand: four needles under dense and a window, with planted sinks, carriers and a restore.

2 layers of 2 heads, 32 tokens. Head L1H0 reads the answer's place with 0.8 in the base and 0.1 in the run. The window
answers the needles at depth 0.9 and not those at 0.1. Token 0 is a sink in both layers; token 5 one of layer 1 in the
base alone, token 3 one of layer 0 in the run alone; token 30 receives as much, but lies in the part that is not judged.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from needle_findings import write_analyses

from sparselens.storage.writer import RunWriter

BASE, RUN = "run-0-dense", "run-1-window"
LAYERS, HEADS, LENGTH, POOL = 2, 2, 32, 8
PLACE, ANSWER = (7, 9), (28, 30)
NEEDLES = [("pet", 0.1), ("pet", 0.9), ("passkey", 0.1), ("passkey", 0.9)]
READ = {BASE: 0.8, RUN: 0.1}
LOSS = {BASE: {0.1: 0.1, 0.9: 0.2}, RUN: {0.1: 4.0, 0.9: 0.3}}
LAYER = np.repeat(np.arange(LAYERS), HEADS)
HEAD = np.tile(np.arange(HEADS), LAYERS)


def write_error(number: int) -> Any:
    """`[heads]`: what a head's `write_error` is on the answer's rows of a prompt."""
    return np.array([0.1, 0.2, 1.0, 0.4]) + 0.1 * number


def write_prompt(part: Any, number: int) -> None:
    """One needle with its text and spans."""
    family, depth = NEEDLES[number]
    meta = {"family": family, "depth": depth, "length": LENGTH, "value": list(PLACE)}
    part.add(
        "prompts",
        {
            "name": f"{family} {depth}",
            "prompt_set": "needles",
            "grp": family,
            "n_tokens": LENGTH,
            "metadata": json.dumps(meta),
        },
    )
    texts = [f" w{pos}" for pos in range(LENGTH)]
    texts[0], texts[3] = "<|im_start|>", "<b>bold</b>"
    part.add(
        "tokens",
        {"pos": np.arange(LENGTH), "token_id": np.arange(LENGTH), "text": texts, "is_special": False},
    )
    part.add("spans", {"name": ["needle", "answer"], "start": [4, ANSWER[0]], "stop": [12, ANSWER[1]]})


def write_run(part: Any, run: str, number: int) -> None:
    """What a capture keeps of one prompt."""
    depth = NEEDLES[number][1]
    right = depth == 0.9 or run == BASE
    nll = np.full(LENGTH - 1, 2.0)
    nll[ANSWER[0] - 1 : ANSWER[1] - 1] = LOSS[run][depth]
    guess = np.arange(1, LENGTH) if right else np.zeros(LENGTH - 1, int)
    part.add("predictions", {"pos": np.arange(1, LENGTH), "nll": nll, "top1_id": guess})
    for rows, n in (("all", LENGTH), ("span:answer", 2)):
        part.add(
            "head_stats",
            {
                "pattern": "executed",
                "rows": rows,
                "layer": LAYER,
                "head": HEAD,
                "n_rows": n,
                "entropy": np.array([1.0, 2.0, 3.0, 4.0]) + number - (run == RUN),
                "density": 1.0 if run == BASE else 0.5,
            },
        )
    rows = np.arange(ANSWER[0] - 1, ANSWER[1] - 1)
    part.add(
        "edges",
        {
            "layer": 1,
            "head": 0,
            "q_pos": np.repeat(rows, 2),
            "k_pos": np.tile([PLACE[0], 20], len(rows)),
            "p": np.tile([READ[run], 0.05], len(rows)),
            "kept": True,
        },
    )
    size = LENGTH // POOL
    maps = [np.full((size, size), 0.1 * (head + 1)).astype("<f2").tobytes() for head in range(LAYERS * HEADS)]
    part.add(
        "pooled_maps",
        {"pattern": "executed", "layer": LAYER, "head": HEAD, "pool": POOL, "size": size, "data": maps},
    )
    write_tokens(part, run)
    if run == RUN:
        part.add(
            "diffs",
            {
                "run_a": BASE,
                "run_b": RUN,
                "scope": "end_to_end",
                "rows": "span:answer",
                "layer": LAYER,
                "head": HEAD,
                "n_rows": 2,
                "write_error": write_error(number),
                "kept_mass_nosink": 0.5,
            },
        )


def write_tokens(part: Any, run: str) -> None:
    """Mass received and residual norms, with the planted sinks."""
    received = np.full((LAYERS, LENGTH), 0.01)
    received[:, 0], received[:, 30] = 0.6, 0.5
    if run == BASE:
        received[1, 5] = 0.3
    else:
        received[0, 3] = 0.2
    norm = np.ones((LAYERS, LENGTH))
    norm[:, 0] = 50.0
    part.add(
        "token_stats",
        {
            "layer": np.repeat(np.arange(LAYERS), LENGTH),
            "pos": np.tile(np.arange(LENGTH), LAYERS),
            "received_mass": received.ravel(),
            "resid_norm": norm.ravel(),
        },
    )


def write_needles(path: Path, *, analyses: bool = True) -> None:
    """Two runs of the four needles, and unless said otherwise what analyses found."""
    for run_id, policy in ((BASE, "dense"), (RUN, "sliding_window(window=8)")):
        meta = {
            "name": run_id.split("-")[-1],
            "policy": policy,
            "model": "invented",
            "kernel": "reference",
            "parents": [] if run_id == BASE else [BASE],
            "extra": {"n_kv_heads": 1},
        }
        run = RunWriter.start(path, run_id, meta)
        for number in range(len(NEEDLES)):
            with run.part([f"prompt-{number}"]) as part:
                write_prompt(part, number)
                write_run(part, run_id, number)
        run.finish({})
    if analyses:
        write_analyses(path, BASE, RUN)
