"""`sparselens sweep`: compare policies at equal density, beside oracles and random selections of the same shape."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer


def sweep(
    model: Annotated[
        str, typer.Argument(help="A name of `models`, a Hugging Face id, a folder or a GGUF file.")
    ],
    trace: Annotated[Path, typer.Option(help="The trace folder; made where there is none.")],
    prompts: Annotated[str, typer.Option(help="A set such as needles(length=512,n=16), or a file.")],
    policy: Annotated[list[str], typer.Option(help="A method; its budget is changed to meet the density.")],
    density: Annotated[str, typer.Option(help="Target densities, such as 0.1,0.2,0.4.")] = "0.1,0.2,0.4",
    seeds: Annotated[int, typer.Option(min=1, help="Random selections beside every point.")] = 3,
    references: Annotated[
        int, typer.Option(min=0, help="Run oracles and random selections on so many prompts. [0: all]")
    ] = 0,
    decode: Annotated[
        str, typer.Option(help="So many last tokens come one at a time: a number, or `answer`. [none]")
    ] = "",
    base: Annotated[str, typer.Option(help="What the policies are compared with.")] = "dense",
    kernel: Annotated[str, typer.Option(help="How the kept keys are computed.")] = "blocked",
    metric: Annotated[str, typer.Option(help="What the points are ranked by.")] = "recalled_mass",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Compute anew what was computed before.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list of objects.")] = False,
) -> None:
    """Measure every policy at every density; an interrupted sweep goes on where it stopped."""
    from sparselens.analyses.sweep.metric import METRICS
    from sparselens.analyses.sweep.question import ANALYSIS
    from sparselens.workbench.listing import show
    from sparselens.workbench.models import load

    arguments: dict[str, Any] = {
        "policies": tuple(policy),
        "densities": numbers(density),
        "prompts": prompts,
        "seeds": seeds,
        "references": references,
        "decode": decode,
        "base": base,
        "kernel": kernel,
    }
    ANALYSIS.settle(arguments)
    if metric not in METRICS:
        raise ValueError(f"sweep has no metric {metric!r}; it has {', '.join(METRICS)}")
    session = load(model, revision=revision, dtype=dtype, device=device)
    setting = ANALYSIS.setting(session, trace, **arguments)
    before = None if again else ANALYSIS.done(setting)
    if before is not None:
        print(f"{before.run_id} has answered this; --again computes it anew", file=sys.stderr)
    else:
        print(f"sweep: {ANALYSIS.cost(setting)}", file=sys.stderr)
    run_id = ANALYSIS.run(session, setting.trace, again=again, progress=sys.stderr.isatty(), **arguments)
    shown = ANALYSIS.show(setting.trace, run_id, {"metric": metric})
    show(shown.rows, as_json=as_json, empty="nothing was measured")
    for note in shown.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"run {run_id}", file=sys.stderr)


def numbers(text: str) -> tuple[float, ...]:
    """`0.1,0.2` as the numbers it names; ValueError for anything else."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"densities are written 0.1,0.2,0.4; not {text!r}") from error


COMMAND = sweep
