"""`sparselens demo`: what a window, a sink and a few dense heads each save, on the built-in model, start to page."""

from __future__ import annotations

import os
import shutil
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sparselens.analyses.comparison import Comparison
    from sparselens.workbench.capture import RunHandle
    from sparselens.workbench.session import Session

MODEL = "smollm2-135m"
PROMPTS = (
    "needles(length=384,families=[passkey,hidden_item,meeting,pet],n=4)",
    "repeats(length=128,n=2)",
)
HEADS = "L18H6,L18H7,L14H3,L7H7,L23H7,L23H2,L8H0,L17H2,L29H1,L17H0,L17H3,L15H6,L17H4,L23H1,L20H1,L14H5,L20H3"
"""Heads that changed most on the answer rows of needle families that the demo does not use: see docs/demo.md."""
POLICIES = (
    "sliding_window(window=68)",
    "a_shape(sink=4,window=64)",
    f"per_head(default=a_shape(sink=4,window=64),full=[{HEADS}])",
)
ROLES: dict[str, Any] = {
    "parts": ["repeats", "needles"],
    "sequences": 4,
    "gaps": [0, 50],
    "needles": 8,
    "needle_length": 256,
}
"""A small measurement of roles, a minute: see docs/roles.md for the whole one."""
NAMES = ("window", "sink+window", "sink+window, some heads dense")


def demo(
    trace: Annotated[Path, typer.Option(help="Where the demo's trace goes.")] = Path("demo-trace"),
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="A taken port moves on to the next free one.")
    ] = 8050,
    again: Annotated[bool, typer.Option("--again", help="Forget an earlier demo's trace.")] = False,
) -> None:
    """Capture needles and repeated tokens under four policies, analyse and compare them, and open the pages.

    Ctrl-C ends it; with DEMO_SERVE=0 in the environment it checks that the page answers, and leaves.
    """
    from sparselens.workbench.capture import capture
    from sparselens.workbench.models import load

    if again and (trace / "trace.json").exists():
        shutil.rmtree(trace)
    session = load(MODEL)
    prompts = [prompt for source in PROMPTS for prompt in session.prompts(source)]
    print(f"{len(prompts)} prompts, base and {len(POLICIES)} policies, into {trace}", flush=True)
    runs = capture(
        session,
        prompts,
        POLICIES,
        trace,
        keep=["qk"],
        verify=True,
        generate=6,
        resume=True,
        command=["sparselens", "demo"],
    )
    _analyse(session, trace, runs)
    _table(trace, runs)
    _report(trace, runs)
    _serve(trace, port, runs)


def _analyse(session: Session, trace: Path, runs: list[RunHandle]) -> None:
    """Measure roles, what became of sinks and, with and without repair, of SAE features; nothing twice."""
    from sparselens.analyses.analysis import analyses

    roles = analyses()["roles"]
    setting = roles.setting(session, trace, **ROLES)
    if roles.done(setting) is None:
        print(f"roles: {roles.cost(setting)}", flush=True)
    roles.run(session, trace, progress=True, **ROLES)
    for run in runs:
        analyses()["sinks"].run(None, trace, run=run.run_id)
    for run in runs[2:]:
        setting = analyses()["features"].setting(session, trace, run=run.run_id)
        if analyses()["features"].done(setting) is None:
            print(f"features of {run.policy}: {analyses()['features'].cost(setting)}", flush=True)
        analyses()["features"].run(session, trace, run=run.run_id)


def _report(trace: Path, runs: list[RunHandle]) -> None:
    """Write the report of all policies as one file beside the trace."""
    from sparselens.analyses.report.report import report

    file = trace.with_name(f"{trace.name}-report.html")
    written = report(trace, runs[0].run_id, [run.run_id for run in runs[1:]], form="html")
    file.write_text(written, encoding="utf-8")
    print(f"\nThe report: {file}")


def _table(trace: Path, runs: list[RunHandle]) -> None:
    """Print density, losses and needles of every run, and the heads that changed most."""
    from sparselens.analyses.comparison import Comparison
    from sparselens.analyses.runs import find_run
    from sparselens.storage.reader import connect
    from sparselens.workbench.listing import show

    with connect(trace) as connection:
        found = [find_run(connection, handle.run_id) for handle in runs]
        compared = [Comparison(connection, found[0], run) for run in found[1:]]
        rows = [_row("dense", compared[0], is_base=True)]
        rows += [_row(name, comparison) for name, comparison in zip(NAMES, compared, strict=True)]
    print()
    show(rows)
    print(
        "\nNLL in nats a token: of the needles' answers, and of repeated random tokens the second time."
        "\nHeads: write_error on the rows that predict the answer (sparselens report dense RUN --trace ... says more)."
    )


def _row(name: str, comparison: Comparison, *, is_base: bool = False) -> dict[str, Any]:
    """Return one line of the table; of the base with `is_base`."""
    run = comparison.a if is_base else comparison.b
    answer, needles = comparison.score("answer_nll"), comparison.score("answer_generated")
    density = comparison.ask("density", run=run["run_id"]).to_pylist()[0]["density"]
    again = comparison.ask("span_nll", run=run["run_id"], span="second").to_pylist()[0]["nll"]
    checks = [run["verify_kernel"], run["verify_logits"], run["verify_calls"]]
    changed = [] if is_base else comparison.heads("span:answer", 4)
    which = 0 if is_base else 1
    return {
        "policy": name,
        "density": f"{density:.0%}",
        "answer NLL": "" if answer is None else f"{answer[which].mean:.2f}",
        "needles": ""
        if needles is None
        else f"{needles[which].mean * needles[which].n:.0f}/{needles[which].n}",
        "repeat NLL": "" if again is None else f"{again:.2f}",
        "verified": f"{checks.count(True)}/3",
        "heads that changed most": " ".join(
            f"{head['head_name']} {head['write_error']:.2f}" for head in changed
        ),
    }


def _serve(trace: Path, port: int, runs: list[RunHandle]) -> None:
    """Open the pages on the difference between dense and sink+window, or only check that they answer."""
    from sparselens.dashboards.app import open_server

    server, url = open_server(trace, port)
    page = f"{url}?a={runs[0].run_id}&b={runs[2].run_id}"
    if os.environ.get("DEMO_SERVE") == "0":
        _check(server, page)
        return
    print(f"\nSee what the window dropped: {page}\nCtrl-C ends it.", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()


def _check(server: Any, page: str) -> None:
    """Ask for the page once; exit 1 if it does not answer."""
    from threading import Thread

    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        with urllib.request.urlopen(page, timeout=30) as answer:  # noqa: S310
            found = answer.status == 200 and b"SparseLens" in answer.read()
    finally:
        server.shutdown()
        thread.join()
    if not found:
        print(f"error: {page} does not answer", file=sys.stderr)
        raise typer.Exit(1)
    print(f"\nThe page answers: {page}")


COMMAND = demo
