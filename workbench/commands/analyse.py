"""`sparselens analyse`: ask one question of a model or of a trace."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sparselens.workbench.session import Session


def analyse(
    name: Annotated[str, typer.Argument(help="One of `analyses`, or a call: roles(gaps=[0,50]).")],
    trace: Annotated[Path, typer.Option(help="The trace folder; made where a model is run.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="The model it runs: a name of `models`, a hub id, a folder. [of --run: the recorded one]"
        ),
    ] = None,
    policy: Annotated[str | None, typer.Option(help="Under which attention. [dense]")] = None,
    run: Annotated[str | None, typer.Option(help="The run whose tables it reads.")] = None,
    bos: Annotated[
        bool | None,
        typer.Option("--bos/--no-bos", help="Put BOS before raw text, or leave it out. [the tokenizer's]"),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps. [auto; of --run: the recorded one]")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16, float16 or float64. [float32; of --run: the recorded one]"),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many heads of each metric to print.")] = 5,
    threshold: Annotated[float, typer.Option(help="What counts as strong in the printed labels.")] = 0.4,
    again: Annotated[bool, typer.Option("--again", help="Compute anew what was computed before.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list of objects.")] = False,
) -> None:
    """Answer a question of `analyses`; its rows go into the trace as a run of their own."""
    from sparselens.analyses.analysis import parse
    from sparselens.workbench.listing import show

    analysis, arguments = parse(name)
    if policy is not None:
        arguments["policy"] = policy
    if run is not None:
        arguments["run"] = run
    if bos is not None:
        arguments["bos"] = "added" if bos else "left out"
    analysis.settle(arguments)
    session = None
    if analysis.model_of_run:
        if dtype is not None or revision is not None:
            raise ValueError(
                f"{analysis.name} runs the model as it was recorded: leave --dtype and --revision out"
            )
        session = _recorded(trace, str(arguments["run"]), model, device)
    elif analysis.needs_model:
        from sparselens.workbench.models import load

        if model is None:
            raise ValueError(f"{analysis.name} runs a model: give --model")
        session = load(model, revision=revision, dtype=dtype or "float32", device=device or "auto")
    setting = analysis.setting(session, trace, **arguments)
    before = None if again else analysis.done(setting)
    if before is not None:
        print(f"{before.run_id} has answered this; --again computes it anew", file=sys.stderr)
    else:
        print(f"{analysis.name}: {analysis.cost(setting)}", file=sys.stderr)
    run_id = analysis.run(session, setting.trace, again=again, progress=sys.stderr.isatty(), **arguments)
    shown = analysis.show(setting.trace, run_id, {"top": top, "threshold": threshold})
    show(shown.rows, as_json=as_json, empty="nothing was found")
    for note in shown.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"run {run_id}", file=sys.stderr)


def _recorded(trace: Path, run: str, model: str | None, device: str | None) -> Session:
    """Return a session on the model of a run."""
    from sparselens.analyses.runs import find_run
    from sparselens.storage.reader import connect
    from sparselens.storage.trace import Trace
    from sparselens.workbench.recorded import recorded_session

    with connect(trace) as connection:
        run_id = find_run(connection, run)["run_id"]
    return recorded_session(Trace.open(trace).run(run_id), model, device=device, progress=True)


COMMAND = analyse
