"""Compiles the Triton kernels for a GPU that need not be there, and prints the names of what it compiled.

    python tests/kernels/compiled_triton.py bare rows all bits few [90] [--usage]

Launches are turned into compilations, by Triton's own compiler and assembler, with the sizes that a GPU would
get. Leaves with an error where one does not compile, or where the kernel without statistics spills registers.
`--usage` adds shared memory, registers and bytes of stack.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from conftest import make_call
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.selection import Band, Bits, Selection, Stripes
from sparselens.kernels.statistics import NAMES, NOTHING, ROW_NAMES, Want
from sparselens.kernels.triton_decode import attend_few
from sparselens.kernels.triton_kernel import Triton
from sparselens.kernels.triton_launch import attend_prefill, plan_prefill

LENGTH = 256
DUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class NoGpu:
    """Stands in for the driver: a GPU of some compute capability that nothing is ever sent to."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return device


def usage(compiled: Any) -> tuple[int, int]:
    """Registers a thread and bytes of stack of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        text = subprocess.run(
            [DUMP, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found is not None, text
    return int(found[1]), int(found[2])


def compile_instead(show: bool, spilled: dict[str, int]) -> None:
    """Make every launch compile its kernel, and note the bytes it spills."""

    def getitem(self: Any, grid: Any) -> Any:
        def launch(*arguments: Any, **sizes: Any) -> None:
            compiled = self.warmup(*arguments, grid=grid, **sizes)
            registers, stack = usage(compiled)
            name = self.fn.__name__
            spilled[name] = max(stack, spilled.get(name, 0))
            shared = compiled.metadata.shared >> 10
            print(name, f"shared={shared}K registers={registers} stack={stack}" if show else "")

        return launch

    JITFunction.__getitem__ = getitem


def prefill(call: AttentionCall, selection: Selection, want: Want = NOTHING) -> None:
    kernel = Triton()
    work = plan_prefill(call, selection, want, kernel.tile)
    attend_prefill(call, work, want, kernel.blocks(call, work.tile), False)


def main(arguments: list[str]) -> None:
    capability = next((int(word) for word in arguments if word.isdigit()), 90)
    triton.runtime.driver.set_active(NoGpu(capability))
    spilled: dict[str, int] = {}
    compile_instead("--usage" in arguments, spilled)
    call = make_call(LENGTH, 4, 2, 128, dtype=torch.bfloat16)
    if "bare" in arguments:
        prefill(call, Band(4, 100))
        assert not spilled["attend_tiles"], "the kernel without statistics spills registers"
    if "rows" in arguments:
        prefill(call, Band(4, 100), Want(ROW_NAMES))
    if "all" in arguments:
        stripes = Stripes(torch.randint(0, LENGTH, (1, 4, 9)), torch.randint(0, LENGTH, (1, 4, 2)))
        prefill(call, stripes, Want(NAMES, gather=torch.zeros(1, 4, LENGTH, 3)))
    if "bits" in arguments:
        prefill(call, Bits.of(torch.rand(1, 4, LENGTH, LENGTH) < 0.3))
    if "few" in arguments:
        last = make_call(LENGTH, 4, 2, 128, dtype=torch.bfloat16, q_len=1)
        attend_few(last, Band(4, 100), NOTHING, 2, False)


if __name__ == "__main__":
    main(sys.argv[1:])
