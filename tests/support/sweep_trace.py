"""A trace with a sweep: three methods at two densities, one of them off-label, one half dense."""

from __future__ import annotations

from pathlib import Path

from sparselens.storage.writer import RunWriter

METHODS = {"window": (0.4, False, 0.0), "trained": (0.9, True, 0.0), "half_dense": (0.6, False, 0.5)}
METRICS = ("recalled_mass", "write_error", "nll_change")


def write_sweep(path: Path) -> None:
    """Three methods at two densities, as a sweep writes them."""
    points = {}
    for name, (value, off_label, dense) in METHODS.items():
        for target in (0.1, 0.2):
            meta = {
                "kind": "sweep", "policy": f"{name}(k={target})", "phase": "prefill", "off_label": off_label,
                "lookahead": False, "args": {"method": name, "target": target, "prompts": "prose(n=2)"},
                "extra": {"unit": "keys", "reached": True},
            }  # fmt: skip
            with RunWriter.start(path, meta=meta) as run:
                run.finish({})
            points[run.run_id] = (value + target, target, dense)
    with RunWriter.start(path, meta={"kind": "analysis", "name": "sweep"}) as run:
        with run.part([]) as part:
            for run_id, (value, target, dense) in points.items():
                found = dict.fromkeys(METRICS, value) | {"density": target, "dense_call_share": dense}
                found |= {f"{metric}{suffix}": 0.3 for metric in METRICS for suffix in ("_random", "_oracle")}
                found |= {f"{metric}_over_random": value - 0.3 for metric in METRICS}
                part.add(
                    "evals",
                    {
                        "run_id": run_id, "task": "sweep", "metric": list(found), "value": list(found.values()),
                        "n": 2, "n_clusters": 2, "ci_low": 0.0, "ci_high": 2.0,
                    },
                )  # fmt: skip
        run.finish({})
