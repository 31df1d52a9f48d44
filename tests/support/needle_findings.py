"""What analyses found on the needles of `needle_trace`: retrieval scores, sinks by layer, a restore."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sparselens.storage.writer import RunWriter

LAYERS, HEADS = 2, 2
LAYER = np.repeat(np.arange(LAYERS), HEADS)
HEAD = np.tile(np.arange(HEADS), LAYERS)
RETRIEVAL = (0.0, 0.05, 0.9, 0.2)


def write_analyses(path: Path, base: str, run_b: str) -> None:
    """Retrieval scores of the base, its sinks by layer, and a restore of the run's policy."""
    with RunWriter.start(path, "run-2-roles", {"name": "roles", "kind": "analysis"}) as run:
        with run.part([]) as part:
            part.add(
                "head_scores",
                {
                    "run_id": base,
                    "metric": "retrieval",
                    "layer": LAYER,
                    "head": HEAD,
                    "value": np.array(RETRIEVAL),
                    "ci_low": np.array(RETRIEVAL) - 0.1,
                    "ci_high": np.array(RETRIEVAL) + 0.1,
                    "n": 8,
                    "n_clusters": 4,
                    "rows": "generated",
                    "prompt_set": "needles(n=8)",
                    "definition": "hits ÷ tokens",
                    "params": "{}",
                },
            )
        run.finish({})
    with RunWriter.start(path, "run-3-sinks", {"name": "sinks", "kind": "analysis"}) as run:
        with run.part([]) as part:
            for metric, values in {
                "sink_rate": (0.0, 1.0),
                "value_drain": (1.0, 0.2),
                "residual_peak": (1.0, 50.0),
            }.items():
                part.add(
                    "head_scores",
                    {
                        "run_id": base,
                        "metric": metric,
                        "layer": np.arange(LAYERS),
                        "value": np.array(values),
                        "n": 8,
                        "params": "{}",
                    },
                )
            part.add(
                "evals",
                {
                    "run_id": base,
                    "task": "sinks",
                    "metric": "sink_rate",
                    "value": 0.5,
                    "n": 16,
                    "n_clusters": 2,
                    "ci_low": 0.4,
                    "ci_high": 0.6,
                },
            )
        run.finish({})
    write_restore(path, run_b)


def write_restore(path: Path, restored: str, *, gap: tuple[float, float, float] = (2.0, 1.0, 3.0)) -> None:
    """A restore: one and two heads by write_error, two random draws and their mean, a wider policy."""
    args = {
        "policy": "sliding_window(window=8)",
        "base": "dense",
        "kind": "run_dense",
        "phase": "both",
        "ranked_on": "needles(seed=2)",
    }
    meta = {
        "name": "restore",
        "kind": "analysis",
        "policy": args["policy"],
        "prompt_set": "needles(seed=1)",
        "args": args,
    }
    trials = [
        ("none", 0, None, None, None, {"answer_nll": 2.1, "gap": gap[0]}),
        ("base", 0, None, None, None, {"answer_nll": 0.1}),
        ("run_dense", 1, "write_error", None, None, {"gap_closed": 0.5, "answer_nll": 1.1}),
        (
            "run_dense",
            2,
            "write_error",
            None,
            None,
            {"gap_closed": 0.9, "answer_nll": 0.3, "gap_closed_over_random": 0.85},
        ),
        ("run_dense", 2, "random", "write_error", 0, {"gap_closed": 0.0}),
        ("run_dense", 2, "random", "write_error", 1, {"gap_closed": 0.1}),
        ("policy", 2, None, None, None, {"gap_closed": 0.02}),
        ("run_dense", 2, "random", "write_error", None, {"gap_closed": 0.05}),
    ]
    with RunWriter.start(path, meta=meta) as run:
        with run.part([]) as part:
            for trial, (kind, n_heads, order, matched, draw, found) in enumerate(trials):
                for metric, value in found.items():
                    low, high = (gap[1], gap[2]) if metric == "gap" else (value - 0.1, value + 0.1)
                    part.add(
                        "interventions",
                        {
                            "base_run": restored,
                            "trial": trial,
                            "fold": None,
                            "kind": kind,
                            "heads": [[]],
                            "n_heads": n_heads,
                            "order_by": order,
                            "matched": matched,
                            "draw": draw,
                            "phase": "both",
                            "metric": metric,
                            "value": value,
                            "n": 8,
                            "n_clusters": 2,
                            "ci_low": low,
                            "ci_high": high,
                            "prompt_set": "needles(seed=1)",
                            "definition": f"what {metric} is",
                        },
                    )
            part.add(
                "interventions",
                {
                    "base_run": restored,
                    "trial": 3,
                    "fold": 0,
                    "kind": "run_dense",
                    "heads": [["L1H0", "L1H1"]],
                    "n_heads": 2,
                    "order_by": "write_error",
                    "metric": "gap_closed",
                    "value": 0.9,
                },
            )
        run.finish({})
