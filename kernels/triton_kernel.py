"""Attention on a GPU that computes only the tiles and keys a selection keeps, in Triton.

Token-exact: partial tiles are masked, stripes' columns are read key by key. Statistics are reduced in the same
pass, so that no map of weights is ever held. Calls of few queries go over gathered lists of keys, split so
that a long cache is read in parallel. `docs/kernels.md` says what it can do and what it refuses.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.kernel import Attended, Kernel, refuse_bias
from sparselens.kernels.selection import Selection
from sparselens.kernels.statistics import NOTHING, Want

if TYPE_CHECKING:
    from sparselens.kernels.triton_launch import Blocks
    from sparselens.kernels.triton_schedule import Schedule

TYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Triton:
    """Computes kept tiles on a CUDA GPU, or, slowly, under Triton's interpreter; not float64.

    `tile` queries and keys a tile (128, or 64 for finer maps of tiles, unless given); `block_m` and `block_n`
    queries and keys a step (they divide `tile`; chosen by type and head_dim unless given); `few`: calls of at
    most so many queries read gathered keys, in `splits` parts (chosen by the size of the GPU unless given).
    """

    tile: int | None = None
    block_m: int | None = None
    block_n: int | None = None
    few: int = 8
    splits: int | None = None
    name: str = "triton"

    def attend(self, call: AttentionCall, selection: Selection, want: Want = NOTHING) -> Attended:
        """Attend over kept and allowed keys; see `Attended` for shapes.

        Raises `ValueError` without Triton, on a device that is neither CUDA nor interpreted, on float64, and on a
        selection that changes scores.
        """
        refuse_bias(selection, self.name)
        if call.q_len > self.few:
            return self.attend_plan(call, self.plan(call, selection, want), want)
        refuse_bias(selection, self.name)
        upcast = _check(call) and call.query.dtype == torch.bfloat16
        from sparselens.kernels.triton_decode import attend_few

        with on_device(call):
            return attend_few(call, selection, want, self.splits, upcast)

    def plan(self, call: AttentionCall, selection: Selection, want: Want = NOTHING) -> Schedule:
        """Return the lists of tiles and keys of a call, for timing and for `attend_plan` with the same want."""
        refuse_bias(selection, self.name)
        _check(call)
        from sparselens.kernels.triton_launch import plan_prefill

        with on_device(call):
            return plan_prefill(call, selection, want, self.tile)

    def attend_plan(self, call: AttentionCall, work: Schedule, want: Want = NOTHING) -> Attended:
        """Attend as planned, from any number of queries."""
        upcast = _check(call) and call.query.dtype == torch.bfloat16
        from sparselens.kernels.triton_launch import attend_prefill

        with on_device(call):
            return attend_prefill(call, work, want, self.blocks(call, work.tile), upcast)

    def blocks(self, call: AttentionCall, tile: int) -> Blocks:
        """Return the sizes of a launch for this call's type and head_dim, in tiles of `tile`."""
        from sparselens.kernels.triton_launch import Blocks

        wide = max(call.head_dim, call.value.shape[-1]) > 128
        exact = call.query.dtype == torch.float32  # products in float32 are done without tensor cores
        block_m = self.block_m or min(tile, (32 if wide else 64) if exact else (64 if wide else 128))
        block_n = self.block_n or min(tile, 32 if exact else 64)
        num_warps = 8 if exact or wide or block_m > 64 else 4
        return Blocks(tile, block_m, block_n, num_warps, num_stages=2 if exact or wide else 3)


def on_device(call: AttentionCall) -> AbstractContextManager[object]:
    """Return the context in which Triton launches on the call's GPU."""
    return torch.cuda.device(call.device) if call.device.type == "cuda" else nullcontext()


def _check(call: AttentionCall) -> bool:
    """Return whether Triton's interpreter runs; raise `ValueError` on what the kernel cannot do."""
    try:
        import triton
    except ImportError as error:
        raise ValueError("kernel 'triton' needs the package triton; 'blocked' runs on the CPU") from error
    if call.query.dtype not in TYPES:
        name = str(call.query.dtype).removeprefix("torch.")
        raise ValueError(f"kernel 'triton' computes in float32, not {name}; use 'reference' for {name}")
    wanted = bool(triton.knobs.runtime.interpret)
    ready = not isinstance(triton.language.standard.max, triton.runtime.JITFunction)
    if wanted != ready:
        raise ValueError(
            "TRITON_INTERPRET=1 must be set before triton is imported: set it before Python starts"
        )
    if not ready and call.device.type != "cuda":
        raise ValueError(
            f"kernel 'triton' runs on CUDA, not on {call.device}; use 'blocked' on the CPU, or TRITON_INTERPRET=1,"
            " set before triton is imported, to check it there"
        )
    return ready


KERNEL: Kernel = Triton()
