"""Times the ten documented questions on a real capture: 20 prompts of 512 tokens, base and three policies.

    python -m benchmarks.queries            (captures into the user's cache once, then measures)
    python -m benchmarks.queries --trace DIR

Two threads, warm, median of nine. Writes benchmarks/results/queries.json and exits 1 if a question that
touches one head or a summary table takes 100 ms or more, or a scan of all edges 2 s or more.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import platformdirs
import pyarrow as pa

from sparselens.storage.questions import questions
from sparselens.storage.reader import Connection, connect

REPEATS = 9
PROMPTS = "needles(length=512,depths=[0.1,0.3,0.5,0.7,0.9],n=20)"
POLICIES = ("sliding_window(window=64)", "a_shape(sink=4,window=64)", "vertical_slash(vertical=64,slash=64)")
RESULTS = Path(__file__).resolve().parent / "results" / "queries.json"


def captured() -> Path:
    """The trace of the capture, made on first use (it can be interrupted: the next call resumes it)."""
    trace = Path(platformdirs.user_cache_dir("sparselens")) / "benchmarks" / "queries"
    if (trace / "trace.json").exists():
        with connect(trace) as there:
            if there.sql("SELECT count(*) FROM runs WHERE status = 'complete' AND n_prompts = 20").rows == [
                (4,)
            ]:
                return trace
    policies = [word for policy in POLICIES for word in ("--policy", policy)]
    command = [
        "capture",
        "smollm2-135m",
        "--prompts",
        PROMPTS,
        *policies,
        "--run",
        "queries",
        "--trace",
        str(trace),
    ]
    resume = ["--resume"] if (trace / "trace.json").exists() else []
    subprocess.run([sys.executable, "-m", "sparselens.workbench.cli", *command, *resume], check=True)
    return trace


def seconds(trace: Connection, sql: str) -> tuple[list[float], int]:
    """Wall times of one query, warm, through the guarded door, and how many rows it gives."""
    rows = len(trace.sql(sql))
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        trace.sql(sql)
        times.append(time.perf_counter() - started)
    return times, rows


def main() -> int:
    """Measure, print and write; 1 if a question is over its limit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", type=Path, help="an existing trace instead of the capture")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    path = given.trace or captured()
    measured = []
    with connect(path, threads=2) as trace:
        sizes = dict(
            zip(
                ("edges", "runs"),
                trace.sql("SELECT (SELECT count(*) FROM edges), count(*) FROM runs").rows[0],
                strict=True,
            )
        )
        for question in questions():
            times, rows = seconds(trace, question.sql)
            median = statistics.median(times)
            measured.append(
                {
                    "question": question.name,
                    "cost": question.cost,
                    "rows": rows,
                    "median_ms": round(median * 1e3, 1),
                    "worst_ms": round(max(times) * 1e3, 1),
                    "limit_ms": question.limit * 1e3,
                    "within": median < question.limit,
                }
            )
            print(
                f"{question.name:24} {median * 1e3:8.1f} ms  (limit {question.limit * 1e3:.0f})  {rows} rows"
            )
    about = {
        "prompts": PROMPTS if given.trace is None else "given trace",
        "policies": list(POLICIES) if given.trace is None else [],
        **sizes,
        "repeats": REPEATS,
        "threads": 2,
        "cpus": os.cpu_count(),
        "duckdb": duckdb.__version__,
        "pyarrow": pa.__version__,
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(about | {"questions": measured}, indent=1) + "\n")
    return 0 if all(row["within"] for row in measured) else 1


if __name__ == "__main__":
    sys.exit(main())
