"""The Triton kernel: what it refuses, that it compiles for a GPU, and its checks under Triton's interpreter.

The interpreter needs TRITON_INTERPRET=1 before Triton is imported, so what computes runs in processes of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparselens.kernels.kernel import kernel, kernels
from sparselens.kernels.selection import Everything

from .conftest import make_call

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the repository with one thread and these environment variables."""
    named = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**named, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_it_computes_equals_float64_under_the_interpreter() -> None:
    done = run(
        "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(HERE / "interpreted_triton.py"),
        TRITON_INTERPRET="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]


CAPTURE = """
import sys
sys.path.insert(0, "tests/support")
import numpy, torch
torch.set_num_threads(1)
numpy.seterr(all="ignore")
from small_session import small_session
from sparselens.kernels.kernel import kernels
from sparselens.kernels.triton_kernel import Triton
from sparselens.workbench.capture import capture
kernels()["triton"] = Triton(tile=16)
(run,) = capture(
    small_session(), [sys.argv[2]], ["a_shape(sink=2,window=6)"], sys.argv[1],
    base=None, kernel="triton", verify=True, progress=False,
)
print(run.verdict, run.sql("SELECT kernel FROM runs").rows)
"""


def test_a_capture_with_it_is_verified(tmp_path: Path) -> None:
    text = "One two three four five six seven."
    done = run("-c", CAPTURE, str(tmp_path / "trace"), text, TRITON_INTERPRET="1")
    assert done.stdout.strip() == "verified 3/3 [('triton',)]", done.stderr[-4000:]


def test_no_gpu_and_no_interpreter_is_refused() -> None:
    with pytest.raises(ValueError, match=r"runs on CUDA, not on cpu; use 'blocked' .*TRITON_INTERPRET=1"):
        kernel("triton").attend(make_call(10), Everything())


def test_float64_is_refused() -> None:
    with pytest.raises(ValueError, match="use 'reference' for float64"):
        kernel("triton").attend(make_call(10, dtype=torch.float64), Everything())


def test_a_missing_triton_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ValueError, match="needs the package triton"):
        kernel("triton").attend(make_call(10), Everything())
    assert "triton" in kernels()


def test_the_interpreter_must_be_chosen_before_triton_is_imported() -> None:
    code = (
        "import os, torch, triton; os.environ['TRITON_INTERPRET'] = '1'\n"
        "from sparselens.kernels.kernel import kernel\n"
        "from sparselens.kernels.call import Allowed, AttentionCall\n"
        "from sparselens.kernels.selection import Everything\n"
        "one, index = torch.zeros(1, 1, 4, 16), torch.arange(4)\n"
        "call = AttentionCall(one, one, one, index[None], index[None], Allowed(index, index), 1.0)\n"
        "kernel('triton').attend(call, Everything())"
    )
    assert "must be set before triton is imported" in run("-c", code).stderr


def test_the_registry_does_not_import_triton() -> None:
    done = run(
        "-c",
        "import sys; from sparselens.kernels.kernel import kernels; kernels(); print('triton' in sys.modules)",
    )
    assert done.stdout.strip() == "False", done.stderr


def test_it_compiles_for_a_gpu_without_spilling(tmp_path: Path) -> None:
    """What would be launched, compiled for compute capability 9.0 by Triton's own compiler; nothing is run."""
    done = run(str(HERE / "compiled_triton.py"), "bare", "few", TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.split() == ["attend_tiles", "attend_part", "join_parts"]


@pytest.mark.slow
def test_every_pass_compiles_for_a_gpu(tmp_path: Path) -> None:
    for capability in ("80", "90"):
        done = run(
            str(HERE / "compiled_triton.py"),
            "bare",
            "all",
            "bits",
            "few",
            capability,
            TRITON_CACHE_DIR=str(tmp_path),
        )
        assert done.returncode == 0, done.stderr[-4000:]
        assert {"sum_tiles", "sum_listed", "weights_at_keys"} <= set(done.stdout.split())


def test_the_gpu_benchmark_refuses_without_a_gpu() -> None:
    done = run("benchmarks/gpu.py", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert "needs a CUDA GPU" in done.stderr
    assert not done.stdout


@pytest.mark.slow
def test_the_gpu_benchmark_checks_its_own_steps_under_the_interpreter() -> None:
    done = run("benchmarks/gpu.py", "--check")
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("error") == 4
