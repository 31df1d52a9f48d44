"""What a capture costs beside the plain forward pass of the same prompt, in CPU seconds and in peak memory.

    python benchmarks/capture.py [--lengths 512,1024,2048] [--memory-lengths 1024,2048] [--rounds 3] [--json]

One process, one thread, real prose, everything warmed first; all peers are timed in turn, round after round,
so that a slow minute of the machine hits each of them alike. *Plain* is the bare Hugging Face model with SDPA
and the loss of every token, logits in chunks of rows as a capture makes them. *Dense* is the default capture
with writing; *policy* is what the policy's run adds to it (paired capture − dense capture: executed and
counterfactual attention, comparison with the base, writing); *policy alone* is a capture without a base. The
others keep every attention pattern, as they do. Peak memory is that of a process of its own for each peer, and
length, reported as what it takes over the plain forward's. Refuses to report, with exit code 1, when the plain
forward itself spreads more than 10 % (interquartile range ÷ median); exits with 2 when a limit is missed.
Writes `benchmarks/results/capture.json` (unless `--peers` leaves some out).
"""

from __future__ import annotations

import sys
from pathlib import Path

# beside this file lies `kernels.py`, and transformers imports a package of that name
HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from sparselens.workbench.models import load
from sparselens.workbench.session import Session, implementation

MODEL = "smollm2-135m"
POLICY = "a_shape(sink=4,window=128)"
ROWS = 64  # rows of logits at once, on both sides
SPREAD = 0.10
RESULTS = HERE / "results" / "capture.json"

LONGEST = {"transformer_lens": 2048, "output_attentions": 2048}
PATTERNS = tuple(LONGEST)
TIME_LIMITS = {"dense": 1.6, "policy": 2.2, "policy alone": 2.2}  # × plain
TIME_AT = (1024, 2048)
MEMORY_LIMITS = {2048: 300.0, 8192: 500.0}  # MB over plain
CAPTURES = ("dense", "paired", "policy alone")


@dataclass
class Bench:
    """The model and one prompt; each peer is a method that runs it once."""

    length: int

    @cached_property
    def session(self) -> Session:
        """The default model."""
        return load(MODEL, progress=False, device="cpu")

    @cached_property
    def bridge(self) -> Any:
        """TransformerLens' bridge around a second copy of the model: it changes the modules it wraps."""
        return load(MODEL, progress=False, device="cpu").bridge

    @cached_property
    def prompt(self) -> Any:
        """One stretch of prose."""
        return self.session.prompts(f"prose(length={self.length},n=1)")[0]

    @property
    def ids(self) -> Any:
        """Its token ids `[1, tokens]`."""
        return torch.tensor([self.prompt.token_ids])

    def losses(self, hidden: Any) -> Any:
        """NLL of every token from final hidden states, `ROWS` rows of logits at a time."""
        head, target = self.session.model.lm_head, self.ids[0, 1:]
        found = torch.empty(len(target))  # beforehand: small tensors between large ones would leave holes
        for start in range(0, len(target), ROWS):
            rows = slice(start, start + ROWS)
            found[rows] = cross_entropy(head(hidden[rows]), target[rows], reduction="none")
        return found

    def plain(self) -> None:
        """The bare model."""
        hidden = self.session.model.base_model(input_ids=self.ids, use_cache=False).last_hidden_state[0]
        self.losses(hidden[:-1])

    def capture(self, **options: Any) -> None:
        """A capture into a new trace."""
        with tempfile.TemporaryDirectory() as folder:
            self.session.capture([self.prompt], trace=Path(folder) / "trace", progress=False, **options)

    def dense(self) -> None:
        """The default dense capture."""
        self.capture()

    def paired(self) -> None:
        """The base and a policy."""
        self.capture(policies=[POLICY])

    def policy_alone(self) -> None:
        """The policy with its counterfactual, without a base."""
        self.capture(policies=[POLICY], base=None)

    def transformer_lens(self) -> None:
        """Every pattern in TransformerLens' cache (it makes all logits at once)."""
        self.bridge.run_with_cache(self.ids, names_filter=lambda name: name.endswith("attn.hook_pattern"))

    def output_attentions(self) -> None:
        """Every pattern returned by Hugging Face's eager attention."""
        model = self.session.model
        with implementation(model, "eager"):
            out = model.base_model(input_ids=self.ids, use_cache=False, output_attentions=True)
        if len(out.attentions) != self.session.n_layers:
            raise RuntimeError("output_attentions gave no patterns")
        self.losses(out.last_hidden_state[0, :-1])

    def warm(self, peer: str) -> None:
        """Load what `peer` needs, without running the prompt."""
        if peer == "transformer_lens":
            _ = self.bridge
        elif peer in CAPTURES:
            _ = self.session.readout
        _ = self.prompt

    def works(self) -> dict[str, Callable[[], None]]:
        """The peers that can do this length."""
        named = {
            "plain": self.plain,
            "dense": self.dense,
            "paired": self.paired,
            "policy alone": self.policy_alone,
            "transformer_lens": self.transformer_lens,
            "output_attentions": self.output_attentions,
        }
        return {name: work for name, work in named.items() if self.length <= LONGEST.get(name, 1 << 30)}


def peak(peer: str, length: int) -> float:
    """Run one peer once in this process and return the process's largest resident size, MB.

    The high-water mark of this process's own memory; `ru_maxrss` would also count the parent's at the fork.
    """
    torch.set_num_threads(1)
    bench = Bench(length)
    bench.warm(peer)
    with torch.no_grad():
        bench.works()[peer]()
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def peaks(length: int, peers: list[str]) -> dict[str, float]:
    """Largest resident size of every peer, MB, each in a process of its own."""
    found = {}
    for peer in chosen(Bench(length), peers):
        command = [sys.executable, __file__, "--peak", peer, "--lengths", str(length)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        found[peer] = float(done.stdout.split()[-1])
    return found


def chosen(bench: Bench, peers: list[str]) -> dict[str, Callable[[], None]]:
    """The works that are asked for (all of them where none is named); plain is always there."""
    return {name: work for name, work in bench.works().items() if not peers or name in {"plain", *peers}}


def timed(work: Callable[[], object]) -> float:
    """CPU seconds of one run."""
    start = time.process_time()
    work()
    return time.process_time() - start


def in_turn(works: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each work, taken in turn after one round to warm up."""
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


def rows_of(length: int, times: dict[str, list[float]], memory: dict[str, float]) -> Iterator[dict[str, Any]]:
    """One row for each peer: seconds, ratio to plain, spread, memory over plain, the limits; None if not measured."""
    times = dict(times)
    if {"paired", "dense"} <= set(times):
        both = zip(times["paired"], times["dense"], strict=True)
        times["policy"] = [paired - dense for paired, dense in both]
    for name in dict.fromkeys([*times, *memory]):
        own = times.get(name)
        seconds = None if own is None else statistics.median(own)
        ratio = None if seconds is None else seconds / statistics.median(times["plain"])
        extra = memory[name] - memory["plain"] if name in memory else None
        row = {
            "length": length,
            "peer": name,
            "seconds": seconds,
            "spread": None if own is None else spread(own),
            "ratio": ratio,
            "ratio_limit": TIME_LIMITS.get(name) if length in TIME_AT else None,
            "peak_mb": memory.get(name),
            "extra_mb": extra,
            "extra_limit": MEMORY_LIMITS.get(length) if name in CAPTURES else None,
        }
        yield row | {"within": _within(ratio, row["ratio_limit"]) and _within(extra, row["extra_limit"])}


def _within(value: float | None, limit: float | None) -> bool:
    return value is None or limit is None or value <= limit


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    columns = {
        "CPU s": ("seconds", ".2f"),
        "spread": ("spread", ".1%"),
        "× plain": ("ratio", ".2f"),
        "limit": ("ratio_limit", ".1f"),
        "MB": ("peak_mb", ".0f"),
        "over": ("extra_mb", ".0f"),
        "limit MB": ("extra_limit", ".0f"),
    }
    print(f"{'tokens':>6}  {'peer':18}" + "".join(f"{name:>9}" for name in columns))
    for row in rows:
        cells = ["" if row[name] is None else format(row[name], form) for name, form in columns.values()]
        over = "" if row["within"] else "  over the limit"
        print(f"{row['length']:>6}  {row['peer']:18}" + "".join(f"{cell:>9}" for cell in cells) + over)


def measure(
    lengths: list[int], memory_lengths: list[int], rounds: int, peers: list[str]
) -> list[dict[str, Any]]:
    """The rows of every length; RuntimeError when the plain forward is too unsteady to say anything."""
    torch.set_num_threads(1)
    table: list[dict[str, Any]] = []
    first = Bench(lengths[0])
    for length in sorted({*lengths, *memory_lengths}):
        times = {}
        if length in lengths:
            bench = Bench(length)
            bench.__dict__["session"] = first.session
            works = chosen(bench, peers)
            if "transformer_lens" in works:
                bench.__dict__["bridge"] = first.bridge
            for peer in works:
                bench.warm(peer)
            with torch.no_grad():
                times = in_turn(works, rounds)
            wobble = spread(times["plain"])
            if wobble > SPREAD:
                raise RuntimeError(
                    f"the plain forward of {length} tokens spreads {wobble:.1%}, more than {SPREAD:.0%}:"
                    " nothing to report"
                )
        table += rows_of(length, times, peaks(length, peers) if length in memory_lengths else {})
    return table


def numbers(text: str) -> list[int]:
    """Whole numbers separated by commas."""
    return [int(part) for part in text.split(",") if part]


def main(arguments: list[str] | None = None) -> int:
    """Run, print, write; 1 when the machine is too unsteady, 2 when a limit is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", default="512,1024,2048", help="tokens, separated by commas")
    parser.add_argument("--rounds", type=int, default=3, help="rounds after the warm-up, at least 3")
    parser.add_argument("--peers", default="", help="only these, separated by commas (plain is always there)")
    parser.add_argument(
        "--memory-lengths", help="where peak memory is measured [the lengths]; '' for nowhere"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    lengths = numbers(given.lengths)
    memory_lengths = lengths if given.memory_lengths is None else numbers(given.memory_lengths)
    if given.peak:
        print(peak(given.peak, lengths[0]))
        return 0
    if given.rounds < 3:
        parser.error("--rounds is at least 3")
    load = os.getloadavg()[0]
    peers = given.peers.split(",") if given.peers else []
    try:
        table = measure(lengths, memory_lengths, given.rounds, peers)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    record = {
        "model": MODEL,
        "policy": POLICY,
        "machine": f"{platform.machine()} {platform.processor()}".strip(),
        "cpus": os.cpu_count(),
        "load_before": load,
        "torch": torch.__version__,
        "threads": 1,
        "rounds": given.rounds,
        "rows": table,
    }
    if not given.peers:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if given.json:
        print(json.dumps(record, indent=2))
    else:
        show(table)
    return 0 if all(row["within"] for row in table) else 2


if __name__ == "__main__":
    raise SystemExit(main())
