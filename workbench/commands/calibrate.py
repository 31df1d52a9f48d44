"""`sparselens calibrate`: measure on a model what a method needs to know before it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def calibrate(
    method: Annotated[
        str | None, typer.Argument(help="A method, or a call: minference(n=2). Without it: what there is.")
    ] = None,
    model: Annotated[str, typer.Option(help="A name of `models`, a hub id, a folder.")] = "smollm2-135m",
    out: Annotated[Path | None, typer.Option(help="The plan's file. [METHOD.json]")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list of objects.")] = False,
) -> None:
    """Write the plan of a method for a model; the policy then takes it as METHOD(plan=FILE)."""
    from sparselens.workbench.calibration import calibration, calibrations
    from sparselens.workbench.listing import show

    if method is None:
        rows = [
            {"method": name, "measures": kind.summary, "arguments": kind.parameters()}
            for name, kind in calibrations().items()
        ]
        show(rows, as_json=as_json)
        return
    chosen = calibration(method)
    file = out or Path(f"{chosen.method}.json")
    from sparselens.workbench.models import load

    session = load(model, revision=revision, dtype=dtype, device=device)
    plan = chosen.plan(session, lambda line: print(line, file=sys.stderr))
    plan.write(file)
    row = {"method": plan.method, "model": plan.model, "plan": str(file), "hash": plan.hash}
    show([row | {"policy": f"{plan.method}(plan={file})"}], as_json=as_json)


COMMAND = calibrate
