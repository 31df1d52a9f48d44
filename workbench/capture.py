"""Paired capture: every prompt under the base and then under each policy, on the same token ids.

While the base's tensors of a prompt are at hand, each policy's run is compared with it exactly (`diffs`,
`token_diffs`). A prompt is committed to a run in all tables or in none; `resume` goes on at the first missing one.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sparselens.kernels.head import parse_head
from sparselens.kernels.kernel import kernel as kernel_named
from sparselens.kernels.policy import Policy, parse
from sparselens.storage.trace import Trace
from sparselens.storage.writer import RunWriter
from sparselens.workbench.decode import decode_option, require_decode
from sparselens.workbench.job import Job, Metric, Options
from sparselens.workbench.keep import keeper_of
from sparselens.workbench.progress import Progress
from sparselens.workbench.prompt import Prompt
from sparselens.workbench.run import Making, RunHandle
from sparselens.workbench.run_card import policy_card, run_card
from sparselens.workbench.session import Session
from sparselens.workbench.spool import spool
from sparselens.workbench.verify import Verifier

__all__ = ["Metric", "Options", "RunHandle", "capture", "estimate", "shown_heads"]


def capture(
    session: Session,
    prompts: Sequence[Prompt] | Any,
    policies: Sequence[Policy | str] | Policy | str = (),
    trace: str | Path = "trace",
    *,
    base: Policy | str | None = "dense",
    kernel: str = "blocked",
    run_name: str | None = None,
    keep: Sequence[str] = (),
    verify: bool = False,
    resume: bool = False,
    generate: int = 0,
    heads: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    phase: str | None = None,
    seed: int = 0,
    progress: bool = True,
    metrics: Mapping[str, Metric] | None = None,
    command: Sequence[str] | None = None,
    decode: int | str | None = None,
) -> list[RunHandle]:
    """Capture `prompts` under `base` and every policy into `trace`; returns the runs, the base's first.

    `policies` are objects or call strings; `base` None records the policies alone. `run_name` names the runs (the
    policy's call is appended where there are several). `keep` adds vectors to `activations`: `qk`, `z`, `resid` or
    any TransformerLens hook name. `verify` checks every prompt's kernel output, a sample of logits, and the number of
    calls. `resume` continues the runs of the same name and policy in `trace` that were interrupted. `generate` lets
    the model answer each prompt with that many tokens. `heads` (`L18H6`) and `layers` restrict what is recorded, never
    what runs. `phase` replaces the phase of every policy. `metrics` are functions of the answer rows' logits. `decode`
    asks base and policies as if the last tokens of each prompt came one at a time after a prefill of the others: a
    number of tokens, or `answer`.

    Raises `ValueError` on an empty list of prompts, prompts that are too long or of another tokenizer, unknown heads or
    names to keep, a prompt that cannot be decoded so, and a policy that acts on decoded tokens alone without `decode`
    (or `generate`), before anything is written.
    """
    several = [policies] if isinstance(policies, (str, Policy)) else list(policies)
    chosen = [_labelled(policy, phase) for policy in several]
    prompt_list = session.prompts(prompts)
    if not prompt_list:
        raise ValueError("there is nothing to capture: no prompts were given")
    if base is None and not chosen:
        raise ValueError("there is nothing to capture: give a policy, or keep the base")
    recorded = tuple(heads or ()), tuple(layers or ())
    decode = decode_option(decode)
    options = Options(kernel, tuple(keep), verify, generate, *recorded, seed, metrics or {}, decode)
    shown = shown_heads(session, options)
    keeper_of(session, options.keep)
    kernel_named(kernel)
    torch.manual_seed(seed)
    plan = [] if base is None else [(*_labelled(base), True)]
    plan += [(*policy, False) for policy in chosen]
    require_decode([] if generate else [policy for policy, _, _ in plan], prompt_list, decode)
    card = run_card(session, prompt_list, options, shlex.join(command if command is not None else sys.argv))
    with ExitStack() as stack:
        runs = _open_runs(plan, Path(trace), card, run_name, verify=verify, resume=resume, session=session)
        stack.callback(_interrupt_unfinished, runs)
        # beside the parts of a run: should this process be killed, resuming the run takes the leftovers away
        beside = next((run.writer.folder for run in runs if run.writer is not None), None)
        job = Job(session, options, runs, shown, stack.enter_context(spool(beside)))
        todo = [prompt for prompt in prompt_list if any(prompt.id not in run.done for run in runs)]
        with Progress(len(todo), sum(len(prompt) for prompt in todo) * len(runs), enabled=progress) as bar:
            for prompt in todo:
                job.prompt(prompt, bar)
        return [_finish(run, Path(trace)) for run in runs]


def _labelled(policy: Policy | str, phase: str | None = None) -> tuple[Policy, str]:
    """Return a policy and what to call its run: the text that the user gave, else its call."""
    parsed = parse(policy) if isinstance(policy, str) else policy
    if phase is not None:
        parsed = replace(parsed, phase=phase)
    return parsed, policy if isinstance(policy, str) and phase is None else str(parsed)


def shown_heads(session: Session, options: Options) -> dict[int, tuple[int, ...]] | None:
    """Return the recorded heads by layer, None for all; raises `ValueError` on one that the model does not have."""
    if not options.heads and not options.layers:
        return None
    found: dict[int, set[int]] = {layer: set(range(session.n_heads)) for layer in options.layers}
    for name in options.heads:
        layer, head = parse_head(name)
        found.setdefault(layer, set()).add(head)
    for layer, heads in found.items():
        if layer >= session.n_layers or max(heads) >= session.n_heads:
            raise ValueError(
                f"this model has {session.n_layers} layers of {session.n_heads} heads;"
                f" L{layer}H{max(heads)} is not one of them"
            )
    return {layer: tuple(sorted(heads)) for layer, heads in found.items()}


def _open_runs(
    plan: Sequence[tuple[Policy, str, bool]],
    trace: Path,
    card: dict[str, Any],
    run_name: str | None,
    *,
    verify: bool,
    resume: bool,
    session: Session,
) -> list[Making]:
    runs: list[Making] = []
    several = len(plan) > 1
    base_id: str | None = None
    for policy, label, is_base in plan:
        name = label if run_name is None else (f"{run_name} {label}" if several else run_name)
        fields = (
            card
            | policy_card(policy)
            | {
                "name": name,
                "parents": [base_id] if base_id and not is_base else [],
            }
        )
        run_id, writer, done = _resumed(trace, fields) if resume else (None, None, set())
        if run_id is None:
            writer = RunWriter.start(trace, meta=fields)
            run_id = writer.run_id
        base_id = run_id if is_base else base_id
        verifier = Verifier(session) if verify and writer is not None else None
        runs.append(Making(policy, run_id, writer, name, is_base, verifier, done))
    return runs


_SAME = ("name", "policy", "weight_hash", "tokenizer_hash", "kernel", "dtype", "args")


def _resumed(trace: Path, fields: dict[str, Any]) -> tuple[str | None, RunWriter | None, set[str]]:
    """Return the newest run of `trace` that these fields describe: its id, a writer if interrupted, its prompts."""
    found = [
        run
        for run in (Trace.open(trace).runs() if (trace / "trace.json").exists() else ())
        if all(getattr(run.record, name) == fields[name] for name in _SAME)
    ]
    if not found:
        return None, None, set()
    newest = found[-1]
    if newest.status == "complete":
        return newest.run_id, None, set(newest.prompt_ids)
    writer = RunWriter.resume(trace, newest.run_id)
    return newest.run_id, writer, writer.finished_prompts()


def _interrupt_unfinished(runs: Sequence[Making]) -> None:
    for run in runs:
        if run.writer is not None and not run.finished:
            run.writer.interrupt()


def _finish(run: Making, trace: Path) -> RunHandle:
    if run.writer is None:
        return RunHandle(run.run_id, run.name, str(run.policy), trace)
    verdict = None if run.verifier is None else run.verifier.verdict()
    run.writer.finish(
        {
            "dense_call_share": run.dense_calls / max(run.calls, 1),
            **({} if run.done else {"seconds": run.seconds}),
            **({} if verdict is None else verdict.columns()),
        }
    )
    run.finished = True
    return RunHandle(run.run_id, run.name, str(run.policy), trace, verdict)


def estimate(
    session: Session, prompts: Sequence[Prompt], n_runs: int, keep: Sequence[str] = ()
) -> Iterator[tuple[str, float]]:
    """Yield (what, megabytes) that a capture would add to a trace; measured bytes a row on the default model."""
    tokens = sum(len(prompt) for prompt in prompts) * session.n_layers * session.n_heads * n_runs / 1e6
    yield "edges", tokens * 3.1 * 8
    yield "row_stats", tokens * 20
    yield "value_norms", tokens * 4
    if "qk" in keep:
        yield "q and k", tokens * (1 + session.n_kv_heads / session.n_heads) * 64 * 4
