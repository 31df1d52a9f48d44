"""How much of the possible speed-up the `blocked` kernel reaches on the CPU, and what its statistics cost.

    python benchmarks/kernels.py [--tokens 4096] [--rounds 15]

One process, one thread, CPU seconds, real random inputs, 9 query and 3 key-value heads of 64, tiles of 128.
All rows are timed in turn, round after round, so that a slow minute of the machine hits each of them alike.
The limit of a row is allowed tiles ÷ kept tiles; its ratio is the speed-up over causal SDPA ÷ limit. Choosing
the keys (`select`) and laying out the tiles (`plan`) are reported apart. Refuses to report, with exit code 1,
when causal SDPA itself spreads more than 10 % (interquartile range ÷ median). Writes
`benchmarks/results/kernels.json`.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.nn.functional import scaled_dot_product_attention

from sparselens.kernels.blocked import Blocked
from sparselens.kernels.call import Allowed, AttentionCall
from sparselens.kernels.kernel import kernel
from sparselens.kernels.policy import Memory, parse
from sparselens.kernels.selection import Everything, Selection, Tiles
from sparselens.kernels.statistics import NAMES, Want

HEADS, KV_HEADS, HEAD_DIM, BLOCK = 9, 3, 64, 128
SPREAD = 0.10
RESULTS = Path(__file__).parent / "results" / "kernels.json"
DEFAULT_STATISTICS = Want(NAMES - {"gathered"})
ROWS = [  # name, policy, the ratio the project wants
    ("shared band, 18 %", "sliding_window(window=257)", 0.8),
    ("shared band, 50 %", "sliding_window(window=1153)", 0.8),
    ("independent maps, 18 %", "random(density=0.17,granularity=block)", 0.7),
    ("independent maps, 50 %", "random(density=0.5,granularity=block)", 0.7),
    ("band of 18 %, 1 of 9 heads full", "per_head(default=sliding_window(window=257),full=[L0H0])", 0.7),
    ("band of 50 %, 1 of 9 heads full", "per_head(default=sliding_window(window=1153),full=[L0H0])", 0.7),
]


@dataclass
class Row:
    """A selection to be timed."""

    name: str
    policy: str
    target: float
    selection: Selection
    select_ms: float


def make_call(tokens: int, seed: int = 0) -> AttentionCall:
    """A causal prefill with normal queries, keys and values."""
    made = torch.Generator().manual_seed(seed)
    index = torch.arange(tokens)
    shapes = [(1, heads, tokens, HEAD_DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    query, key, value = (torch.randn(shape, generator=made) for shape in shapes)
    return AttentionCall(query, key, value, index[None], index[None], Allowed(index, index), HEAD_DIM**-0.5)


def rows_of(call: AttentionCall) -> list[Row]:
    """The rows of the table, their selections made and timed."""
    rows = []
    for name, text, target in ROWS:
        start = time.process_time()
        selection = parse(text).select(call, Memory())
        rows.append(Row(name, text, target, selection, (time.process_time() - start) * 1e3))
    n = -(-call.q_len // BLOCK)
    everything = Tiles(torch.ones(1, 1, n, n, dtype=torch.bool), BLOCK, BLOCK)
    rows.append(Row("full density, tiles", "all tiles", 1 / 1.3, everything, 0.0))
    rows.append(Row("full density, everything", "dense", 1 / 1.3, Everything(), 0.0))
    return rows


def sdpa(call: AttentionCall, *, grouped: bool) -> Callable[[], object]:
    """Causal SDPA, with grouped queries or with keys and values repeated beforehand."""
    if grouped:
        return lambda: scaled_dot_product_attention(
            call.query, call.key, call.value, is_causal=True, enable_gqa=True
        )
    key, value = (tensor.repeat_interleave(call.group, 1) for tensor in (call.key, call.value))
    return lambda: scaled_dot_product_attention(call.query, key, value, is_causal=True)


def timed(work: Callable[[], object]) -> float:
    """CPU milliseconds of one run."""
    start = time.process_time()
    work()
    return (time.process_time() - start) * 1e3


def in_turn(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
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
    """Largest absolute difference of the output to a float64 computation by the reference kernel."""
    double = replace(call, query=call.query.double(), key=call.key.double(), value=call.value.double())
    truth = kernel("reference").attend(double, selection).output
    return float((Blocked(BLOCK).attend(call, selection).output - truth).abs().max())


def measure(call: AttentionCall, rounds: int) -> tuple[list[dict[str, object]], float, float]:
    """The table, the median and the spread of causal SDPA (the faster way of giving it grouped keys)."""
    blocked, rows = Blocked(BLOCK), rows_of(call)
    works: dict[str, Callable[[], object]] = {
        "sdpa grouped": sdpa(call, grouped=True),
        "sdpa repeated": sdpa(call, grouped=False),
    }
    plans: dict[str, float] = {}
    for row in rows:
        if isinstance(row.selection, Everything):
            works[row.name] = lambda row=row: blocked.attend(call, row.selection)  # type: ignore[misc]
            continue
        plan = blocked.plan(call, row.selection)
        tries = [timed(lambda row=row: blocked.plan(call, row.selection)) for _ in range(5)]  # type: ignore[misc]
        plans[row.name] = statistics.median(tries)
        works[row.name] = lambda plan=plan: blocked.attend_plan(call, plan)  # type: ignore[misc]
    times = in_turn(works, rounds)
    fastest = min(("sdpa grouped", "sdpa repeated"), key=lambda name: statistics.median(times[name]))
    base = statistics.median(times[fastest])
    table: list[dict[str, object]] = []
    for row in rows:
        own = statistics.median(times[row.name])
        computed = float(row.selection.density_computed(call, BLOCK).mean())
        table.append(
            {
                "row": row.name,
                "policy": row.policy,
                "density": float(row.selection.density(call).mean()),
                "density_computed": computed,
                "select_ms": row.select_ms,
                "plan_ms": plans.get(row.name, 0.0),
                "attend_ms": own,
                "spread": spread(times[row.name]),
                "speed_up": base / own,
                "limit": 1 / computed,
                "ratio": base / own * computed,
                "target": row.target,
                "error": error(call, row.selection),
            }
        )
    return table, base, spread(times[fastest])


def measure_statistics(tokens: int, rounds: int) -> dict[str, object]:
    """What all default statistics of a dense call cost beside causal SDPA."""
    call, blocked = make_call(tokens), Blocked(BLOCK)
    works: dict[str, Callable[[], object]] = {
        "sdpa": sdpa(call, grouped=True),
        "statistics": lambda: blocked.attend(call, Everything(), DEFAULT_STATISTICS),
    }
    times = in_turn(works, rounds)
    base, own = (statistics.median(times[name]) for name in works)
    return {"tokens": tokens, "sdpa_ms": base, "statistics_ms": own, "added_ms": own - base}


def show(table: list[dict[str, object]], base: float, wobble: float) -> None:
    """Print the table."""
    print(f"causal SDPA {base:.1f} ms, spread {wobble:.1%}\n")
    names = (
        "density",
        "density_computed",
        "select_ms",
        "plan_ms",
        "attend_ms",
        "spread",
        "speed_up",
        "limit",
        "ratio",
        "target",
        "error",
    )
    print(f"{'row':34}" + "".join(f"{name:>17}" for name in names))
    for row in table:
        cells = [row[name] for name in names]
        written = [
            f"{cell:.1e}" if name == "error" else f"{cell:.3f}"
            for name, cell in zip(names, cells, strict=True)
        ]
        print(f"{row['row']!s:34}" + "".join(f"{cell:>17}" for cell in written))


def main(arguments: list[str] | None = None) -> int:
    """Run, print, write; 1 when the machine is too unsteady to say anything."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--tokens", type=int, default=4096)
    options.add_argument("--rounds", type=int, default=15)
    chosen = options.parse_args(arguments)
    torch.set_num_threads(1)
    with torch.no_grad():
        table, base, wobble = measure(make_call(chosen.tokens), chosen.rounds)
        if wobble > SPREAD:
            print(
                f"causal SDPA spreads {wobble:.1%}, more than {SPREAD:.0%}: nothing to report",
                file=sys.stderr,
            )
            return 1
        costs = [measure_statistics(tokens, chosen.rounds) for tokens in (1024, 2048)]
    show(table, base, wobble)
    for cost in costs:
        print(
            "\nstatistics at {tokens} tokens: SDPA {sdpa_ms:.1f} ms, with all {statistics_ms:.1f} ms".format(
                **cost
            )
        )
    RESULTS.parent.mkdir(exist_ok=True)
    record = {
        "machine": f"{platform.machine()} {platform.processor()}".strip(),
        "torch": torch.__version__,
        "threads": 1,
        "tokens": chosen.tokens,
        "rounds": chosen.rounds,
        "sdpa_ms": base,
        "sdpa_spread": wobble,
        "rows": table,
        "statistics": costs,
    }
    RESULTS.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
