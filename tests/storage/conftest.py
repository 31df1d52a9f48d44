"""A tiny but complete prompt's rows, and traces made of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparselens.storage.part import Part
from sparselens.storage.rows import Coded
from sparselens.storage.trace import Run, Trace
from sparselens.storage.writer import RunWriter

LAYERS, HEADS, TOKENS, TOP = 2, 3, 5, 2


def add_prompt(part: Part, prompt_id: str, seed: int = 0) -> None:
    """Rows of one prompt in tables of every shape: texts, lists, statistics, edges, bytes."""
    random = np.random.default_rng([seed, *prompt_id.encode()])
    positions = np.arange(TOKENS)
    part.add(
        "prompts",
        {"prompt_id": prompt_id, "name": f"prompt {prompt_id}", "n_tokens": TOKENS, "answer_ids": [[7, 8]]},
    )
    part.add(
        "tokens",
        {
            "prompt_id": prompt_id,
            "pos": positions,
            "token_id": random.integers(0, 49_152, TOKENS),
            "text": [f" {i}\n" for i in range(TOKENS)],
            "is_special": positions == 0,
        },
    )
    part.add("spans", {"prompt_id": prompt_id, "name": ["needle", "answer"], "start": [1, 3], "stop": [3, 5]})
    n = HEADS * TOKENS * TOP
    for layer in range(LAYERS):
        part.add(
            "edges",
            {
                "prompt_id": prompt_id,
                "layer": layer,
                "head": np.repeat(np.arange(HEADS), TOKENS * TOP),
                "q_pos": np.tile(np.repeat(positions, TOP), HEADS),
                "k_pos": np.tile(np.arange(TOP), HEADS * TOKENS),
                "p": random.random(n, dtype=np.float32),
                "kept": random.random(n) < 0.5,
                "reason": Coded(random.integers(0, 2, n), ["run", "both"]),
            },
        )
        part.add(
            "head_stats",
            {
                "prompt_id": prompt_id,
                "pattern": "executed",
                "rows": "all",
                "layer": layer,
                "head": np.arange(HEADS),
                "n_rows": TOKENS,
                "entropy": random.random(HEADS),
            },
        )


def write_run(path: Path, prompts: list[str], *, finish: bool = True, **meta: Any) -> Run:
    """A run with these prompts, one a part."""
    run_id = meta.pop("run_id", None)
    with RunWriter.start(path, run_id, meta) as run:
        for prompt in prompts:
            with run.part([prompt]) as part:
                add_prompt(part, prompt)
        if finish:
            return run.finish()
    return Trace.open(path).run(run.run_id)


@pytest.fixture
def trace_path(tmp_path: Path) -> Path:
    """Where a test's trace goes."""
    return tmp_path / "trace"


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out fsync: what is tested is the order of steps, not the disk."""
    monkeypatch.setattr("os.fsync", lambda handle: None)


@pytest.fixture(scope="session")
def writing() -> Callable[..., Run]:
    """`write_run`, for tests that cannot import this file."""
    return write_run
