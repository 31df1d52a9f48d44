"""A trace with circuits: a model whose circuit is known, dense and under a window, without any captured run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from planted_circuit import CIRCUIT, FIRST_WORD, WORDS, planted

from sparselens.analyses.circuit.question import ANALYSIS
from sparselens.storage.writer import RunWriter
from sparselens.workbench.token_text import TokenText

GIVEN: dict[str, Any] = {
    "task": "copying(words=4,again=1)",
    "references": 1,
    "n": 4,
    "sizes": (3, 5, 12),
    "edges": 60,
    "steps": 2,
    "heads": 2,
    "knockouts": 2,
}
NEAR = "a_shape(sink=1,window=2)"
FOUND = set(CIRCUIT) - {("input", "L1H0.q")}
"""What the task's references leave of the planted circuit."""


OVERLAP: dict[str, Any] = {
    "circuit_a": "one",
    "circuit_b": "other",
    "level": ["heads"],
    "size": [3],
    "among": [12],
    "jaccard": [0.2],
    "expected": [0.75],
    "expected_jaccard": [0.14],
    "p": [0.6],
    "spearman": [float("nan")],
}


def write_circuits(path: Path) -> None:
    """The planted circuit by search, dense and under a window; a task that is not applicable; an overlap, twice."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TokenText, "words", lambda self: list(range(FIRST_WORD, FIRST_WORD + WORDS)))
        ANALYSIS.run(planted()[0], path, policy=NEAR, progress=False, **GIVEN)
    numbers = {"applicable": False, "accuracy": 0.25, "chance": 0.5, "needed": 0.75}
    about = {"name": "circuit", "kind": "analysis", "policy": "dense", "prompt_set": "ioi(n=16)"}
    RunWriter.start(path, "cannot", {**about, "extra": numbers}).finish({})
    for place in range(2):  # asked twice: the newer answer is shown
        run = RunWriter.start(path, f"reuse-{place}", {"name": "circuit_reuse", "kind": "analysis"})
        with run.part([]) as part:
            part.add("circuit_overlaps", {**OVERLAP, "shared": [1 + place]})
        run.finish({})
