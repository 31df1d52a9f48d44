"""How much of the possible speed-up the `blocked` kernel reaches on the CPU, and what its statistics cost.

    python benchmarks/kernels.py [--tokens 4096 8192] [--rounds 9] [--out FILE]

One process, one thread, CPU seconds, real random inputs, 9 query and 3 key-value heads of 64. All rows of a length are
timed in turn, round after round, so that a slow minute of the machine hits each of them alike. The limit of a row is
what is allowed ÷ what is kept: tiles of 128 for bands and aligned maps, pairs of a query and a key for all others (of
stripes as a kernel with tiles of 64 loads them). Its ratio is the speed-up over causal SDPA ÷ limit. Choosing the keys
(`select`) and laying out the work (`plan`) are reported apart. SDPA with a boolean mask and compiled FlexAttention are
timed in the same rounds. Refuses to report, with exit code 1, when causal SDPA itself spreads more than 10 %
(interquartile range ÷ median). Writes `benchmarks/results/kernels.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sparselens.kernels.blocked import Blocked
from sparselens.kernels.call import AttentionCall
from sparselens.kernels.kernel import kernel
from sparselens.kernels.selection import Everything, Selection
from sparselens.kernels.statistics import NAMES, Want

sys.path.append(str(Path(__file__).parent))
from _kernel_peers import flex, sdpa, sdpa_masked
from _kernel_rows import BLOCK, Row, make_call, rows_of

sys.path.pop()  # beside this file lies `kernels.py`, the name of a package that others import

SPREAD = 0.10
SAME = 1e-4  # outputs of two float32 computations, values up to 5
MASKED_ROUNDS = 3  # SDPA with a mask takes several times as long as all else
RESULTS = Path(__file__).parent / "results" / "kernels.json"
DEFAULT_STATISTICS = Want(NAMES - {"gathered"})
Work = Callable[[], object]


def timed(work: Work) -> float:
    """CPU milliseconds of one run."""
    start = time.process_time()
    work()
    return (time.process_time() - start) * 1e3


def in_turn(works: dict[str, Work], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each work, `rounds` times, taken in turn after one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            spent = timed(work)
            if turn:
                times[name].append(spent)
    return times


def spread(times: list[float]) -> float:
    """Interquartile range ÷ median."""
    low, _, high = statistics.quantiles(times, n=4)
    return (high - low) / statistics.median(times)


def error(call: AttentionCall, selection: Selection) -> float:
    """Largest absolute difference to the reference kernel in float64, on 4 × 64 rows spread over the prompt."""
    found = Blocked(BLOCK).attend(call, selection).output
    worst = 0.0
    for start in range(0, call.q_len, call.q_len // 4):
        rows = torch.arange(start + call.q_len // 4 - 64, start + call.q_len // 4)
        part = call.sequence(0, rows, torch.arange(call.k_len))
        double = replace(part, query=part.query.double(), key=part.key.double(), value=part.value.double())
        kept = selection.sequence(0, rows, torch.arange(call.k_len))
        truth = kernel("reference").attend(double, kept).output
        worst = max(worst, float((found[:, :, rows] - truth).abs().max()))
    return worst


def works_of(
    call: AttentionCall, rows: list[Row]
) -> tuple[dict[str, Work], dict[str, list[float]], dict[str, int]]:
    """What is timed, by name; the times of planning; the cells that a plan computes."""
    blocked, plans, cells = Blocked(BLOCK), dict[str, list[float]](), dict[str, int]()
    works: dict[str, Work] = {
        "sdpa grouped": sdpa(call, grouped=True),
        "sdpa repeated": sdpa(call, grouped=False),
    }
    for row in rows:
        if isinstance(row.selection, Everything):
            works[row.name] = lambda row=row: blocked.attend(call, row.selection)  # type: ignore[misc]
            continue
        plan = blocked.plan(call, row.selection)
        cells[row.name] = plan.cells
        plans[row.name] = [timed(lambda row=row: blocked.plan(call, row.selection)) for _ in range(5)]  # type: ignore[misc]
        works[row.name] = lambda plan=plan: blocked.attend_plan(call, plan)  # type: ignore[misc]
        if row.flex:
            works[f"flex: {row.name}"] = other = flex(call, row.selection)
            apart = float((other() - blocked.attend_plan(call, plan).output).abs().max())
            if apart > SAME:
                raise ValueError(
                    f"FlexAttention and blocked differ by {apart:.1e} on {row.name}: not the same mask"
                )
    return works, plans, cells


def measure(tokens: int, rounds: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of a length, and its peers: causal SDPA (the faster way of giving it grouped keys), masked SDPA."""
    call = make_call(tokens)
    rows = rows_of(call)
    works, plans, cells = works_of(call, rows)
    times = in_turn(works, rounds)
    middle = {name: statistics.median(taken) for name, taken in times.items()}
    fastest = min(("sdpa grouped", "sdpa repeated"), key=middle.__getitem__)
    base = middle[fastest]
    peers = {"tokens": tokens, "sdpa_ms": base, "sdpa_spread": spread(times[fastest])}
    if spread(times[fastest]) > SPREAD:
        return [], peers
    allowed = int(call.allowed_pairs()[0]) * call.heads
    table: list[dict[str, Any]] = []
    for row in rows:
        own, plan = middle[row.name], statistics.median(plans.get(row.name, [0.0]))
        density, touched = (
            float(found.mean())
            for found in (row.selection.density(call), row.selection.density_computed(call, BLOCK))
        )
        kept = touched if row.by == "tiles" else density
        other = middle.get(f"flex: {row.name}")
        table.append(
            {
                "row": f"{row.name} ({tokens:,})",
                "policy": row.policy,
                "density": density,
                "density_computed": touched,
                "cells": cells.get(row.name, allowed) / allowed,
                "select_ms": row.select_ms,
                "plan_ms": plan,
                "attend_ms": own,
                "spread": spread(times[row.name]),
                "speed_up": base / own,
                "speed_up_planned": base / (own + plan),
                "flex_speed_up": base / other if other else None,
                "limit_by": row.by,
                "limit": 1 / kept,
                "ratio": base / own * kept,
                "wanted_ratio": row.ratio,
                "wanted_speed_up": row.speed_up,
                "error": error(call, row.selection),
            }
        )
    masked = in_turn({"sdpa masked": sdpa_masked(call, rows[0].selection)}, MASKED_ROUNDS)["sdpa masked"]
    return table, peers | {"sdpa_masked_ms": statistics.median(masked)}


def measure_statistics(tokens: int, rounds: int) -> dict[str, Any]:
    """What all default statistics of a dense call cost beside causal SDPA."""
    call, blocked = make_call(tokens), Blocked(BLOCK)
    works: dict[str, Work] = {
        "sdpa": sdpa(call, grouped=True),
        "statistics": lambda: blocked.attend(call, Everything(), DEFAULT_STATISTICS),
    }
    times = in_turn(works, rounds)
    base, own = (statistics.median(times[name]) for name in works)
    return {"tokens": tokens, "sdpa_ms": base, "statistics_ms": own, "added_ms": own - base}


def show(table: list[dict[str, Any]]) -> None:
    """Print the table of docs/benchmarks.md."""
    print(
        "| row | kept pairs | kept tiles | computed | limit | speed-up | ratio | with planning | Flex | wanted |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in table:
        shares = " | ".join(f"{row[name]:.1%}" for name in ("density", "density_computed", "cells"))
        flex_said = "–" if row["flex_speed_up"] is None else f"{row['flex_speed_up']:.2f} ×"
        wanted = "–"
        if row["wanted_ratio"] is not None:
            wanted = f"ratio {row['wanted_ratio']:.2f}"
        elif row["wanted_speed_up"] is not None:
            wanted = f"{row['wanted_speed_up']:.2f} ×"
        print(
            f"| {row['row']} | {shares} | {row['limit']:.2f} × | {row['speed_up']:.2f} × | {row['ratio']:.2f} "
            f"| {row['speed_up_planned']:.2f} × | {flex_said} | {wanted} |"
        )


def main(arguments: list[str] | None = None) -> int:
    """Run, print, write; 1 when the machine is too unsteady to say anything."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--tokens", type=int, nargs="+", default=[4096, 8192])
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--out", type=Path, default=RESULTS, help="where the record is written")
    chosen = options.parse_args(arguments)
    torch.set_num_threads(1)
    table, lengths, load = list[dict[str, Any]](), list[dict[str, Any]](), [os.getloadavg()[0]]
    with torch.no_grad():
        for tokens in chosen.tokens:
            rows, peers = measure(tokens, chosen.rounds)
            if not rows:
                said = f"causal SDPA spreads {peers['sdpa_spread']:.1%} at {tokens} tokens, more than {SPREAD:.0%}"
                print(f"{said}: nothing to report", file=sys.stderr)
                return 1
            table += rows
            lengths.append(peers)
        costs = [measure_statistics(tokens, chosen.rounds) for tokens in (1024, 2048)]
    load.append(os.getloadavg()[0])
    show(table)
    print(*lengths, *costs, f"load {load[0]:.1f} at the start, {load[1]:.1f} at the end", sep="\n")
    record = {
        "machine": f"{platform.machine()} {platform.processor()}".strip(),
        "cores": os.cpu_count(),
        "load": load,
        "torch": torch.__version__,
        "threads": 1,
        "rounds": chosen.rounds,
        "lengths": lengths,
        "rows": table,
        "statistics": costs,
    }
    chosen.out.parent.mkdir(exist_ok=True)
    chosen.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
