"""The traces that the pages are timed on, captured from the default model: one long prompt, and many short ones.

python benchmarks/_view_traces.py NAME FOLDER    (`long`, `short` or `one_prompt`; an interrupted capture goes on)
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from sparselens.storage.reader import connect

MODEL = "smollm2-135m"
SHORT_POLICIES = (
    *(f"a_shape(sink={sink},window={window})" for sink in (1, 2, 4) for window in (4, 8, 12, 16)),
    *(f"sliding_window(window={window})" for window in (4, 8, 12, 16, 24)),
    *(f"a_shape(sink=8,window={window})" for window in (4, 8, 16)),
    *(f"tri_shape(sink=2,window={window},last=4)" for window in (4, 8, 16)),
    *(f"oracle_topk(k={k})" for k in (2, 4, 8, 16)),
    *(f"oracle_mass(density={density})" for density in (0.1, 0.2, 0.3, 0.5)),
    *(f"random(density={density})" for density in (0.1, 0.2, 0.3, 0.5)),
    *(
        f"vertical_slash(vertical={vertical},slash={slash},last_q=8,sink=1,recent=2,min_vertical=1,min_slash=1,tile=1)"
        for vertical, slash in ((4, 4), (8, 4), (4, 8), (8, 8))
    ),
    *("dilated(window=8,dilation=2)", "dilated(window=16,dilation=2)"),
    *("sparse_transformer(stride=4,summary=1)", "sparse_transformer(stride=8,summary=2)"),
    *("power_attention(block=4,local=1,sink=1)", "power_attention(block=4,local=2,sink=1)"),
    "radial(block=4)",
    *("mas_former(dense=[0],window=8)", "mas_former(dense=[0,10,20],window=8,sink=2)"),
    "s2_attention(block=4,local=2,stride=2)",
)


@dataclass(frozen=True)
class Wanted:
    """A trace by what is captured into it."""

    prompts: str
    policies: tuple[str, ...]
    n_prompts: int

    def command(self, trace: Path) -> list[str]:
        """The words of the command line that captures it."""
        policies = [word for policy in self.policies for word in ("--policy", policy)]
        resume = ["--resume"] if (trace / "trace.json").exists() else []
        return ["capture", MODEL, "--prompts", self.prompts, *policies, "--trace", str(trace), *resume]

    def is_there(self, trace: Path) -> bool:
        """Whether every run is complete."""
        if not (trace / "trace.json").exists():
            return False
        complete = (
            "SELECT count(*) FROM runs WHERE kind = 'capture' AND status = 'complete' AND n_prompts = ?"
        )
        with connect(trace) as there:
            return there.sql(complete, [self.n_prompts]).rows == [(1 + len(self.policies),)]


WANTED = {
    "long": Wanted("needles(length=8192,depths=[0.5],n=1)", ("vertical_slash(vertical=256,slash=1024)",), 1),
    "short": Wanted("ioi(n=50)", SHORT_POLICIES, 100),
    **{
        f"prose-{n}": Wanted(f"prose(length={n},n=1)", ("a_shape(sink=4,window=32)",), 1)
        for n in (128, 256, 512)
    },
}


def captured(name: str, trace: Path | None = None) -> Path:
    """The folder of a trace of `WANTED`, captured on first use into the user's cache."""
    folder = trace or Path(platformdirs.user_cache_dir("sparselens")) / "benchmarks" / f"views-{name}"
    wanted = WANTED[name]
    if not wanted.is_there(folder):
        command = [sys.executable, "-m", "sparselens.workbench.cli", *wanted.command(folder)]
        subprocess.run(command, check=True)
    return folder


if __name__ == "__main__":
    print(captured(sys.argv[1], Path(sys.argv[2])))
