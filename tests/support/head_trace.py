"""Traces for the Head page: rows written by hand, and a capture of a small model with a restore beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from needle_findings import write_analyses

from sparselens.storage.writer import RunWriter

BASE, RUN = "run-0-dense", "run-1-band"
LENGTH = 6
POLICY = "a_shape(sink=2,window=24)"
PROMPTS = "needles(length=140,n=4)"
ERRORS = [0.5, 0.1, 0.9, 0.3, 0.7, 0.2, 0.4, 0.8, 0.6, 1.0, 0.05, 0.15]
"""`write_error` of the head on each prompt."""

EDGES = {
    BASE: {"k_pos": [0, 2, 5], "p": [0.5, 0.3, 0.1], "kept": True},
    RUN: {
        "k_pos": [0, 2, 5],
        "p": [0.6, 0.0, 0.3],
        "p_base": [0.5, 0.3, 0.1],
        "kept": [True, False, True],
    },
}
"""Of query 5: what each run stores. Run B keeps keys 0, 4 and 5; key 4 is not stored."""


def write_hand(path: Path) -> None:
    """One head, prompts of 6 tokens; the last row of the first prompt has edges, all have differences."""
    for run_id, policy in ((BASE, "dense"), (RUN, "a_shape(sink=1,window=2)")):
        meta = {
            "name": run_id,
            "policy": policy,
            "model": "invented",
            "parents": [] if run_id == BASE else [BASE],
        }
        run = RunWriter.start(path, run_id, meta)
        for number, error in enumerate(ERRORS):
            with run.part([f"prompt-{number:02}"]) as part:
                _prompt(part, number)
                _row(part, run_id)
                if run_id == RUN:
                    for scope, kept in (("end_to_end", 0.9), ("local_mask", 0.66)):
                        part.add(
                            "diffs",
                            {"run_a": BASE, "run_b": RUN, "scope": scope, "rows": "span:last", "layer": 0, "head": 0,
                             "n_rows": 1, "write_error": error, "kept_mass": kept},
                        )  # fmt: skip
        run.finish({})


def _prompt(part: Any, number: int) -> None:
    part.add(
        "prompts", {"name": f"prompt {number}", "prompt_set": "hand", "grp": f"{number}", "n_tokens": LENGTH}
    )
    at = np.arange(LENGTH)
    part.add("tokens", {"pos": at, "token_id": at, "text": [f" w{pos}" for pos in at], "is_special": False})
    part.add("spans", {"name": ["needle", "last"], "start": [2, 5], "stop": [3, 6]})


def _row(part: Any, run: str) -> None:
    at = {"layer": 0, "head": 0}
    part.add("edges", {**at, "q_pos": 5, **EDGES[run]})
    part.add(
        "row_stats",
        {"pattern": "executed", **at, "q_pos": 5, "sink_mass": EDGES[run]["p"][0], "lse": 1.0, "unstored_mass": 0.1},
    )  # fmt: skip
    part.add(
        "head_stats",
        {"pattern": "executed", "rows": "span:last", **at, "n_rows": 1, "write_norm": 2.0 if run == BASE else 1.5},
    )  # fmt: skip
    part.add(
        "value_norms", {**at, "pos": np.arange(LENGTH), "value_write_norm": [0.1, 1.0, 2.0, 3.0, 4.0, 5.0]}
    )
    kind = {"kind": "everything"} if run == BASE else {"kind": "band", "sink": 1, "window": 2}
    part.add("selections", {**at, "kind": kind["kind"], "data": [json.dumps(kind).encode()]})


def write_captured(path: Path) -> tuple[str, str]:
    """A small random Llama on needles of 140 tokens, q and k kept, with scores and a restore; ids of both runs."""
    from small_session import small_session

    from sparselens.workbench.capture import capture

    session = small_session()
    base, run = capture(session, session.prompts(PROMPTS), [POLICY], path, keep=["qk"], progress=False)
    write_analyses(path, base.run_id, run.run_id)
    return base.run_id, run.run_id
