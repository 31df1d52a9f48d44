"""What the `triton` kernel does on a CUDA GPU, beside compiled FlexAttention and dense flash attention.

    python benchmarks/gpu.py [--tokens 32768] [--heads 32] [--kv-heads 8] [--head-dim 128] [--rounds 20]
    python benchmarks/gpu.py --check

bfloat16, real random inputs, one layer. Every row is timed in turn, round after round, by CUDA events; medians
and spreads. FlexAttention gets the same block mask and the same rule inside partial blocks. Choosing the keys
(`select`) and laying out the lists (`plan`) are reported apart, as FlexAttention's own mask is. Wanted: at least
as fast as FlexAttention at the same mask, and row statistics for at most 25 % more. Statistics that need a
second pass (`received`, `pooled`, `top`) are a row of their own. Writes `benchmarks/results/gpu.json` with the
device's name. Refuses without a GPU. `--check` runs the same steps on a few tokens under Triton's interpreter,
compares the outputs, times nothing and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sparselens.kernels.call import Allowed, AttentionCall
from sparselens.kernels.kernel import kernel
from sparselens.kernels.policy import Memory, parse
from sparselens.kernels.selection import Band, Selection, Stripes, Tiles
from sparselens.kernels.statistics import NAMES, NOTHING, ROW_NAMES, Want
from sparselens.kernels.triton_kernel import Triton

RESULTS = Path(__file__).parent / "results" / "gpu.json"
ROWS = [
    "dense",
    "a_shape(sink=128,window=4096)",
    "random(density=0.1,granularity=block)",
    "random(density=0.5,granularity=block)",
    "random(density=0.1,granularity=block,block=64)",
    "vertical_slash(vertical=1000,slash=1000,tile=64)",
]
SMALL_ROWS = [
    "dense",
    "a_shape(sink=2,window=9)",
    "random(density=0.5,granularity=block,block=16)",
    "vertical_slash(vertical=3,slash=2,last_q=8,sink=1,recent=1,min_vertical=1,min_slash=1,tile=8)",
]
WANTED = {"speed over FlexAttention": 1.0, "cost of row statistics": 0.25}
SAMPLED = 64  # rows that are compared with float64


@dataclass(frozen=True)
class Setting:
    """Where: `device`, FlexAttention's `tile`, our kernel, and what times a piece of work in milliseconds."""

    device: str
    tile: int
    kernel: Triton
    clock: Callable[[Callable[[], object]], float]
    compiled: bool


def on_gpu(work: Callable[[], object]) -> float:
    """Milliseconds on the GPU between two events around the work."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end))


def on_cpu(work: Callable[[], object]) -> float:
    """CPU milliseconds, for the check."""
    start = time.process_time()
    work()
    return (time.process_time() - start) * 1e3


def make_call(tokens: int, heads: int, kv_heads: int, head_dim: int, device: str) -> AttentionCall:
    """A causal prefill with normal queries, keys and values in bfloat16."""
    made = torch.Generator(device).manual_seed(0)
    index = torch.arange(tokens, device=device)

    def normal(count: int) -> Tensor:
        cells = torch.randn(1, count, tokens, head_dim, generator=made, device=device)
        return cells.to(torch.bfloat16)

    tensors = normal(heads), normal(kv_heads), normal(kv_heads)
    return AttentionCall(*tensors, index[None], index[None], Allowed(index, index), head_dim**-0.5)


def flex_rule(selection: Selection, call: AttentionCall) -> Callable[..., Tensor]:
    """What FlexAttention evaluates inside partial blocks: the same rule as a function of indices."""
    if isinstance(selection, Band):
        sink, window = selection.sink, selection.window
        return lambda b, h, q, k: (k <= q) & ((k < sink) | (q - k < window))
    if isinstance(selection, Tiles):
        kept, rows, columns = selection.map, selection.block_q, selection.block_k
        one = kept.shape[1] == 1
        return lambda b, h, q, k: (k <= q) & kept[0, 0 if one else h, q // rows, k // columns]
    if isinstance(selection, Stripes):
        reach, size = selection.tile or 1, call.k_len
        distances = selection.distances[0, :, :, None].expand(-1, -1, reach)
        gaps = distances - torch.arange(reach, device=call.device)  # of a block's first query to a key
        near = marks((gaps + size).flatten(1), (distances >= 0).flatten(1), 2 * size)
        column = marks(selection.columns[0], selection.columns[0] >= 0, size)
        return lambda b, h, q, k: (k <= q) & (column[h, k] | near[h, q // reach * reach - k + size])
    return lambda b, h, q, k: k <= q


def marks(index: Tensor, valid: Tensor, size: int) -> Tensor:
    """Bool `[heads, size]`, True at the valid ones of the indices `[heads, n]`."""
    found = torch.zeros(index.shape[0], size + 1, dtype=torch.bool, device=index.device)
    return found.scatter_(1, index.where(valid, size), True)[:, :size]


def flex_work(selection: Selection, call: AttentionCall, setting: Setting) -> Callable[[], Tensor]:
    """FlexAttention over the tiles that the selection touches, compiled where there is a GPU."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    some, full = selection.tiles(call, setting.tile)

    def listed(tiles: Tensor) -> tuple[Tensor, Tensor]:
        order = tiles.int().argsort(stable=True, dim=-1, descending=True)
        return tiles.sum(-1).int().contiguous(), order.int().contiguous()

    mask: Any = BlockMask.from_kv_blocks(
        *listed(some & ~full),
        *listed(full),
        BLOCK_SIZE=setting.tile,
        mask_mod=flex_rule(selection, call),
        seq_lengths=(call.q_len, call.k_len),
    )
    attend: Any = torch.compile(flex_attention, dynamic=False) if setting.compiled else flex_attention
    options = {"block_mask": mask, "scale": call.scale, "enable_gqa": True}
    return lambda: attend(call.query, call.key, call.value, **options)  # type: ignore[no-any-return]


def exact_rows(call: AttentionCall, selection: Selection) -> tuple[Tensor, Tensor]:
    """Some rows, the last among them, and their output in float64 by the reference kernel."""
    made = torch.Generator().manual_seed(0)
    rows = torch.randperm(call.q_len, generator=made)[:SAMPLED].sort().values
    rows = torch.cat([rows, torch.tensor([call.q_len - 1])]).unique().to(call.device)
    keys = torch.arange(call.k_len, device=call.device)
    one = call.sequence(0, rows, keys)
    one = replace(one, query=one.query.double(), key=one.key.double(), value=one.value.double())
    return rows, kernel("reference").attend(one, selection.sequence(0, rows, keys)).output


def measure(text: str, call: AttentionCall, setting: Setting, rounds: int) -> dict[str, object]:
    """One row of the table."""
    own = setting.kernel
    policy = parse(text)
    selection = policy.selection_for(call, Memory())
    select_ms = setting.clock(lambda: policy.selection_for(call, Memory()))
    everything = Want(NAMES - {"gathered"}, cells=max(1, min(64, call.q_len // 16)))
    wants = {"bare": NOTHING, "rows": Want(ROW_NAMES), "all": everything}
    plans = {name: own.plan(call, selection, want) for name, want in wants.items()}
    flex = flex_work(selection, call, setting)
    works: dict[str, Callable[[], object]] = {"flex": flex}
    for name, want in wants.items():
        works[name] = lambda name=name, want=want: own.attend_plan(call, plans[name], want)  # type: ignore[misc]
    works["sdpa"] = lambda: scaled_dot_product_attention(
        call.query, call.key, call.value, is_causal=True, scale=call.scale, enable_gqa=True
    )
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):  # the first to compile and to warm up
        for name, work in works.items():
            spent = setting.clock(work)
            if turn or not rounds:
                times[name].append(spent)
    rows, truth = exact_rows(call, selection)
    middle = {name: statistics.median(spent) for name, spent in times.items()}
    return {
        "policy": text,
        "density": float(selection.density(call).mean()),
        "tile": plans["bare"].tile,
        "density_computed": float(selection.density_computed(call, plans["bare"].tile).mean()),
        "select_ms": select_ms,
        "plan_ms": setting.clock(lambda: own.plan(call, selection)),
        **{f"{name}_ms": value for name, value in middle.items()},
        "spread": {name: (max(spent) - min(spent)) / middle[name] for name, spent in times.items()},
        "speed over FlexAttention": middle["flex"] / middle["bare"],
        "speed over SDPA": middle["sdpa"] / middle["bare"],
        "cost of row statistics": middle["rows"] / middle["bare"] - 1,
        "cost of all statistics": middle["all"] / middle["bare"] - 1,
        "error": float((own.attend(call, selection).output[:, :, rows] - truth).abs().max()),
        "flex_error": float((flex()[:, :, rows] - truth).abs().max()),
    }


def check() -> int:
    """Run every step on a few tokens under the interpreter; 1 where an output is wrong."""
    setting = Setting("cpu", 16, Triton(16), on_cpu, compiled=False)
    with torch.no_grad():
        call = make_call(40, 2, 1, 16, "cpu")
        allowed = 2 * torch.finfo(torch.bfloat16).eps * float(call.value.abs().max())
        for text in SMALL_ROWS:
            row = measure(text, call, setting, 0)
            print(f"{text}: error {row['error']:.1e}, FlexAttention {row['flex_error']:.1e}")
            if max(float(str(row["error"])), float(str(row["flex_error"]))) > allowed:
                print(f"an output is further than {allowed:.1e} from float64", file=sys.stderr)
                return 1
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run, print, write; 2 without a GPU."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name, value in {"tokens": 32768, "heads": 32, "kv-heads": 8, "head-dim": 128, "rounds": 20}.items():
        options.add_argument(f"--{name}", type=int, default=value)
    options.add_argument("--check", action="store_true")
    chosen = options.parse_args(arguments)
    if chosen.check:
        os.environ["TRITON_INTERPRET"] = "1"
        return check()
    if not torch.cuda.is_available():
        print(
            "benchmarks/gpu.py needs a CUDA GPU, and none is here; --check runs its steps without",
            file=sys.stderr,
        )
        return 2
    setting = Setting("cuda", 128, Triton(), on_gpu, compiled=True)
    with torch.no_grad():
        call = make_call(chosen.tokens, chosen.heads, chosen.kv_heads, chosen.head_dim, "cuda")
        table = [measure(text, call, setting, chosen.rounds) for text in ROWS]
    record = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "arguments": vars(chosen),
        "wanted": WANTED,
        "rows": table,
    }
    for row in table:
        print(json.dumps(row))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
