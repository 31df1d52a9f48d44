"""`sparselens capture`: run prompts under the base and under policies, and keep what the heads did."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sparselens.workbench.prompt import Prompt
    from sparselens.workbench.session import Session


def capture(
    model: Annotated[
        str, typer.Argument(help="A name of `models`, a Hugging Face id, a folder or a GGUF file.")
    ],
    trace: Annotated[Path, typer.Option(help="The trace folder; made where there is none.")],
    prompts: Annotated[
        list[str],
        typer.Option(help="A set such as needles(length=512), a JSONL or Parquet file, or - (stdin)."),
    ],
    policy: Annotated[
        list[str] | None, typer.Option(help="A policy such as a_shape(sink=4,window=64), or @plan.json.")
    ] = None,
    base: Annotated[str, typer.Option(help="What the policies are compared with.")] = "dense",
    no_base: Annotated[
        bool, typer.Option("--no-base", help="Record the policies alone, without changes.")
    ] = False,
    run: Annotated[str | None, typer.Option(help="Name of the runs.")] = None,
    phase: Annotated[
        str | None, typer.Option(help="Where the policies apply: prefill, decode or both.")
    ] = None,
    heads: Annotated[str | None, typer.Option(help="Record these heads only: L18H6,L17H3.")] = None,
    layers: Annotated[str | None, typer.Option(help="Record these layers only: 0,5,10-14.")] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="Keep vectors too: qk, z, resid, or a hook's name.")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check kernel outputs, logits and calls.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue interrupted runs of the same name.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how large it would be, write nothing.")
    ] = False,
    kernel: Annotated[str, typer.Option(help="How the kept keys are computed.")] = "blocked",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    bos: Annotated[
        bool | None,
        typer.Option("--bos/--no-bos", help="Put BOS before raw text, or leave it out. [the tokenizer's]"),
    ] = None,
    generate: Annotated[int, typer.Option(min=0, help="Let the model answer with so many tokens.")] = 0,
    decode: Annotated[
        str | None,
        typer.Option(help="Decode the last N tokens one at a time, or `answer`: the answer's tokens."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of whatever draws.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list of the runs.")] = False,
) -> None:
    """Capture prompts under the base and each policy, prompt by prompt, on the same tokens."""
    from sparselens.kernels.kernel import kernel as kernel_named
    from sparselens.kernels.policy import parse
    from sparselens.workbench import capture as job
    from sparselens.workbench.decode import decode_option
    from sparselens.workbench.listing import show
    from sparselens.workbench.models import load

    chosen = list(policy or [])
    for text in chosen:
        parse(text)
    parse(base)
    reference = None if no_base else base
    kernel_named(kernel)
    only = None if layers is None else numbers(layers)
    last = decode_option(decode)
    if reference is None and not chosen:
        raise ValueError("nothing to capture: --no-base without a --policy")
    session = load(model, revision=revision, dtype=dtype, device=device)
    read = _read(session, prompts, bos)
    if dry_run:
        n_runs = len(chosen) + (reference is not None)
        sizes = dict(job.estimate(session, read, n_runs, keep or ()))
        sizes["total"] = sum(sizes.values())
        show([{"name": name, "megabytes": size} for name, size in sizes.items()], as_json=as_json)
        return
    runs = job.capture(
        session,
        read,
        chosen,
        trace,
        base=reference,
        kernel=kernel,
        run_name=run,
        keep=keep or (),
        verify=verify,
        resume=resume,
        generate=generate,
        heads=heads.split(",") if heads else None,
        layers=only,
        phase=phase,
        seed=seed,
        decode=last,
        progress=sys.stderr.isatty(),
        command=["sparselens", *sys.argv[1:]],
    )
    rows = [{"name": done.name, "run_id": done.run_id, "policy": done.policy} for done in runs]
    failed = False
    for row, done in zip(rows, runs, strict=True):
        if done.verdict is not None:
            row["verified"] = str(done.verdict)
            failed |= bool(done.verdict.failed)
    show(rows, as_json=as_json)
    if failed:
        print("error: a run is not verified; do not trust it", file=sys.stderr)
        raise typer.Exit(1)


def _read(session: Session, sources: list[str], bos: bool | None) -> list[Prompt]:
    """The prompts of all sources; ValueError when two of them share a prompt."""
    from sparselens.workbench.prompt import distinct

    found = [
        (f"{prompt.name} of {source}", prompt)
        for source in sources
        for prompt in session.prompts(source, bos=bos)
    ]
    return distinct(found)


def numbers(text: str) -> list[int]:
    """`0,5,10-12` as the numbers it names; ValueError for anything else."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ValueError(f"layers are written 0,5,10-14; {part!r} is no layer")
        found.extend(range(int(first), int(last or first) + 1))
    return found


COMMAND = capture
