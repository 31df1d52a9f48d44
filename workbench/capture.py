"""Paired capture: every prompt under the base and then under each policy, on the same token ids.

While the base's tensors of a prompt are at hand, each policy's run is compared with it exactly (`diffs`,
`token_diffs`). A prompt is committed to a run in all tables or in none; `resume` goes on at the first missing one.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparselens.kernels.kernel import Kernel
from sparselens.kernels.kernel import kernel as kernel_named
from sparselens.kernels.policy import Policy, parse
from sparselens.storage.trace import Trace
from sparselens.storage.writer import RunWriter
from sparselens.workbench.generation import continue_greedily
from sparselens.workbench.keep import Keeper, keeper_of
from sparselens.workbench.probe import Columns, Probe, probes
from sparselens.workbench.progress import Progress
from sparselens.workbench.projection import OutputProjection
from sparselens.workbench.prompt import Prompt
from sparselens.workbench.readout import Predictions, Readout
from sparselens.workbench.recorder import Recorder, projections_of, watched
from sparselens.workbench.run_card import run_card
from sparselens.workbench.session import Session, attention_layers, decoder_layers
from sparselens.workbench.spool import Spool, spool
from sparselens.workbench.verify import Verdict, Verifier

Metric = Callable[[Tensor, Prompt], float]
"""A user's own number: logits `[tokens, vocabulary]` of the rows that predict the answer, and the prompt."""


@dataclass(frozen=True)
class Options:
    """What a capture does beside running: see `capture` for each field."""

    kernel: str = "blocked"
    keep: tuple[str, ...] = ()
    verify: bool = False
    generate: int = 0
    heads: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    seed: int = 0
    metrics: Mapping[str, Metric] = field(default_factory=dict)


@dataclass(frozen=True)
class RunHandle:
    """A run in a trace: its id, its name, and where it lies."""

    run_id: str
    name: str
    policy: str
    trace: Path
    verdict: Verdict | None = None

    def sql(self, text: str) -> Any:
        """Ask the run's trace in SQL (one SELECT); returns a result with `.df()` and `.arrow()`."""
        from sparselens.storage.reader import connect

        return connect(self.trace).sql(text)

    def df(self, table: str = "head_stats") -> Any:
        """Return this run's rows of a table as a data frame."""
        return self.sql(f"SELECT * FROM {_identifier(table)} WHERE run_id = '{self.run_id}'").df()


def _identifier(table: str) -> str:
    from sparselens.storage.schema import table as declared

    return declared(table).name


@dataclass(eq=False)
class _Run:
    """One run in the making; without a writer where it was complete before (then it only runs as a base)."""

    policy: Policy
    run_id: str
    writer: RunWriter | None
    name: str
    is_base: bool
    verifier: Verifier | None
    done: set[str]
    dense_calls: int = 0
    calls: int = 0
    seconds: float = 0.0
    finished: bool = False


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
) -> list[RunHandle]:
    """Capture `prompts` under `base` and every policy into `trace`; returns the runs, the base's first.

    `policies` are objects or call strings; `base` None records the policies alone. `run_name` names the runs (the
    policy's call is appended where there are several). `keep` adds vectors to `activations`: `qk`, `z`, `resid` or
    any TransformerLens hook name. `verify` checks every prompt's kernel output, a sample of logits, and the number of
    calls. `resume` continues the runs of the same name and policy in `trace` that were interrupted. `generate` lets
    the model answer each prompt with that many tokens. `heads` (`L18H6`) and `layers` restrict what is recorded, never
    what runs. `phase` replaces the phase of every policy. `metrics` are functions of the answer rows' logits.

    Raises `ValueError` on an empty list of prompts, prompts that are too long or of another tokenizer, unknown heads or
    names to keep, before anything is written.
    """
    chosen = _chosen(policies, phase)
    prompt_list = session.prompts(prompts)
    if not prompt_list:
        raise ValueError("there is nothing to capture: no prompts were given")
    if base is None and not chosen:
        raise ValueError("there is nothing to capture: give a policy, or keep the base")
    options = Options(kernel, tuple(keep), verify, generate, tuple(heads or ()), tuple(layers or ()), seed, metrics or {})
    shown = shown_heads(session, options)
    keeper_of(session, options.keep)
    kernel_named(kernel)
    torch.manual_seed(seed)
    base_policy = None if base is None else (parse(base) if isinstance(base, str) else base)
    plan = [(base_policy, True)] if base_policy is not None else []
    plan += [(policy, False) for policy in chosen]
    card = run_card(session, prompt_list, options, shlex.join(command if command is not None else sys.argv))
    with ExitStack() as stack:
        runs = _open_runs(plan, Path(trace), card, run_name, verify=verify, resume=resume, session=session)
        stack.callback(_interrupt_unfinished, runs)
        job = _Job(session, options, runs, shown, stack.enter_context(spool(Path(trace))))
        todo = [prompt for prompt in prompt_list if any(prompt.id not in run.done for run in runs)]
        with Progress(len(todo), sum(len(prompt) for prompt in todo) * len(runs), enabled=progress) as bar:
            for prompt in todo:
                job.prompt(prompt, bar)
        return [_finish(run, Path(trace)) for run in runs]


def _chosen(policies: Sequence[Policy | str] | Policy | str, phase: str | None) -> list[Policy]:
    from dataclasses import replace

    several = [policies] if isinstance(policies, (str, Policy)) else list(policies)
    parsed = [parse(policy) if isinstance(policy, str) else policy for policy in several]
    return parsed if phase is None else [replace(policy, phase=phase) for policy in parsed]


def shown_heads(session: Session, options: Options) -> dict[int, tuple[int, ...]] | None:
    """Return the recorded heads by layer, None for all; raises `ValueError` on one that the model does not have."""
    if not options.heads and not options.layers:
        return None
    found: dict[int, set[int]] = {layer: set(range(session.n_heads)) for layer in options.layers}
    for name in options.heads:
        layer_text, _, head_text = name.removeprefix("L").partition("H")
        if not (name.startswith("L") and layer_text.isdigit() and head_text.isdigit()):
            raise ValueError(f"heads are written L18H6; got {name!r}")
        found.setdefault(int(layer_text), set()).add(int(head_text))
    for layer, heads in found.items():
        if layer >= session.n_layers or max(heads) >= session.n_heads:
            raise ValueError(
                f"this model has {session.n_layers} layers of {session.n_heads} heads;"
                f" L{layer}H{max(heads)} is not one of them"
            )
    return {layer: tuple(sorted(heads)) for layer, heads in found.items()}


def _open_runs(
    plan: Sequence[tuple[Policy, bool]],
    trace: Path,
    card: dict[str, Any],
    run_name: str | None,
    *,
    verify: bool,
    resume: bool,
    session: Session,
) -> list[_Run]:
    runs: list[_Run] = []
    several = len(plan) > 1
    base_id: str | None = None
    for policy, is_base in plan:
        name = str(policy) if run_name is None else (f"{run_name} {policy}" if several else run_name)
        fields = card | {
            "name": name,
            "policy": str(policy),
            "policy_json": json.dumps(policy.to_json()),
            "phase": policy.phase,
            "off_label": policy.off_label,
            "lookahead": policy.lookahead,
            "parents": [base_id] if base_id and not is_base else [],
        }
        run_id, writer, done = _resumed(trace, fields) if resume else (None, None, set())
        if run_id is None:
            writer = RunWriter.start(trace, meta=fields)
            run_id = writer.run_id
        base_id = run_id if is_base else base_id
        verifier = Verifier(session) if verify and writer is not None else None
        runs.append(_Run(policy, run_id, writer, name, is_base, verifier, done))
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


def _interrupt_unfinished(runs: Sequence[_Run]) -> None:
    for run in runs:
        if run.writer is not None and not run.finished:
            run.writer.interrupt()


@dataclass(eq=False)
class _Job:
    """What stays the same from prompt to prompt."""

    session: Session
    options: Options
    runs: list[_Run]
    heads: dict[int, tuple[int, ...]] | None
    spool: Spool

    def __post_init__(self) -> None:
        self.kernel: Kernel = kernel_named(self.options.kernel)
        self.readout: Readout = self.session.readout
        self.attentions = attention_layers(self.session.model)
        self.layers = decoder_layers(self.session.model)
        self.projections: dict[int, OutputProjection] = projections_of(self.attentions, self.session.n_heads)
        self.probes: list[Probe] = [probe for probe in probes().values() if probe.default]
        self.base = next((run for run in self.runs if run.is_base), None)

    def prompt(self, prompt: Prompt, bar: Progress) -> None:
        """Run one prompt under every run that lacks it, and commit."""
        todo = [run for run in self.runs if prompt.id not in run.done]
        needed = [run for run in self.runs if run in todo or (run is self.base and len(todo) > 0)]
        hidden: dict[str, Tensor] = {}
        affected: dict[str, np.ndarray] = {}
        tables: dict[str, dict[str, list[Columns]]] = {}
        for run in needed:
            bar.says(f"{prompt.name} · {run.policy}")
            started = time.perf_counter()
            recorder, hidden[run.run_id] = self._forward(prompt, run, paired=len(needed) > 1)
            tables[run.run_id], affected[run.run_id] = recorder.tables, recorder.affected_rows()
            run.seconds += time.perf_counter() - started
            bar.advance(len(prompt))
        ids = torch.tensor(prompt.token_ids)
        base_id = None if self.base is None else self.base.run_id
        predictions = self.readout.read(hidden, ids, base_id)
        for run in needed:
            rows = tables[run.run_id]
            _add_predictions(rows, predictions[run.run_id], affected[run.run_id], prompt, run, base_id)
            _add_scores(rows, self._scores(prompt, hidden[run.run_id], predictions[run.run_id], rows), prompt, run)
            if run in todo:
                _commit(run, prompt, rows)
        self.spool.clear()
        bar.finished_prompt()

    @torch.no_grad()
    def _forward(self, prompt: Prompt, run: _Run, *, paired: bool) -> tuple[Recorder, Tensor]:
        """Return what was recorded of one prompt under one run, and the final hidden states `[tokens, d_model]`."""
        session, model = self.session, self.session.model
        recorder = Recorder(
            prompt=prompt,
            policy=run.policy,
            kernel=self.kernel,
            probes=self.probes,
            projections=self.projections,
            spool=self.spool if paired and self.base is not None else None,
            is_base=run.is_base,
            run_name=run.run_id,
            base_name="" if self.base is None else self.base.run_id,
            heads=self.heads,
        )
        observers: list[Any] = [recorder]
        keeper: Keeper | None = keeper_of(session, self.options.keep)
        if keeper is not None:
            keeper.start(prompt, self.heads)
            observers.append(keeper)
        if run.verifier is not None:
            run.verifier.start(prompt, run.policy)
            observers.append(run.verifier)
        ids = torch.tensor([prompt.token_ids], device=session.device)
        with ExitStack() as stack:
            stack.enter_context(watched(recorder, self.layers, self.attentions))
            if keeper is not None:
                stack.enter_context(keeper.listening())
            if run.verifier is not None:
                stack.enter_context(run.verifier.listening(self.attentions))
            execution = stack.enter_context(session.under(run.policy, kernel=self.kernel, observers=observers))
            states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
        run.calls += execution.calls
        run.dense_calls += execution.dense_calls
        if run.verifier is not None:
            run.verifier.finish(execution, states, self.readout)
        rows = recorder.tables
        if keeper is not None:
            rows.setdefault("activations", []).extend(keeper.rows())
        if self.options.generate:
            rows.setdefault("generations", []).append(self._generate(prompt, run))
        return recorder, states

    def _generate(self, prompt: Prompt, run: _Run) -> Columns:
        """Let the model answer the prompt (without its teacher-forced answer) under the run's policy."""
        produced = continue_greedily(
            self.session, prompt, run.policy, self.kernel, max_new_tokens=self.options.generate
        )
        steps = np.arange(len(produced))
        answer = prompt.answer_ids
        return {
            "step": steps.astype(np.uint32),
            "token_id": np.asarray(produced, np.uint32),
            "text": [self.session.tokenizer.decode([token]) for token in produced],
            "correct": [token == answer[step] if step < len(answer) else None for step, token in enumerate(produced)],
        }

    @torch.no_grad()
    def _scores(
        self, prompt: Prompt, hidden: Tensor, predictions: Predictions, rows: dict[str, list[Columns]]
    ) -> dict[str, float]:
        """Return the per-prompt numbers: answer NLL, answer correct, logit difference, the user's own metrics."""
        tokens = len(prompt.token_ids)
        scores = {"nll": float(np.nanmean(predictions.nll)) if tokens > 1 else float("nan")}
        if prompt.answer_ids:
            start = tokens - len(prompt.answer_ids)
            forced = slice(start - 1, tokens - 1)
            scores["answer_nll"] = float(predictions.nll[forced].mean())
            right = predictions.top1_id[forced] == np.asarray(prompt.answer_ids)
            scores["answer_forced"] = float(right.all())
            if prompt.foils or self.options.metrics:
                logits = self.readout.logits(hidden[forced])
                if prompt.foils:
                    foils = logits[0, list(prompt.foils)].mean()
                    scores["logit_diff"] = float(logits[0, prompt.answer_ids[0]] - foils)
                for name, metric in self.options.metrics.items():
                    scores[name] = float(metric(logits, prompt))
            for generated in rows.get("generations", ()):
                correct = generated["correct"][: len(prompt.answer_ids)]
                scores["answer_generated"] = float(len(correct) == len(prompt.answer_ids) and all(correct))
        return scores


def _add_predictions(
    rows: dict[str, list[Columns]],
    found: Predictions,
    affected: np.ndarray,
    prompt: Prompt,
    run: _Run,
    base_id: str | None,
) -> None:
    last = len(prompt.token_ids) - 1
    if last < 1:
        return
    positions: np.ndarray = np.arange(1, last + 1, dtype=np.uint32)
    rows.setdefault("predictions", []).append(
        {"pos": positions, "nll": found.nll[:last], "top1_id": found.top1_id[:last], "top1_p": found.top1_p[:last]}
    )
    if base_id is not None and not run.is_base:
        rows.setdefault("token_diffs", []).append(
            {
                "run_a": base_id,
                "run_b": run.run_id,
                "pos": positions,
                "kl": found.kl[:last],
                "nll_change": found.nll_change[:last],
                "top1_same": found.top1_same[:last],
                "affected": affected[:last],
            }
        )


def _add_scores(rows: dict[str, list[Columns]], scores: dict[str, float], prompt: Prompt, run: _Run) -> None:
    names = list(scores)
    rows.setdefault("prompt_scores", []).append(
        {
            "run_id": run.run_id,
            "task": prompt.prompt_set.partition("(")[0],
            "metric": names,
            "value": np.asarray([scores[name] for name in names]),
        }
    )


def _commit(run: _Run, prompt: Prompt, rows: dict[str, list[Columns]]) -> None:
    if run.writer is None:
        raise ValueError(f"run {run.run_id} is complete")
    tokens = len(prompt.token_ids)
    with run.writer.part([prompt.id]) as part:
        part.add("prompts", prompt_columns(prompt))
        part.add(
            "tokens",
            {
                "prompt_id": prompt.id,
                "pos": np.arange(tokens, dtype=np.uint32),
                "token_id": np.asarray(prompt.token_ids, np.uint32),
                "text": list(prompt.pieces),
                "is_special": list(prompt.special),
            },
        )
        if prompt.spans:
            part.add(
                "spans",
                {
                    "prompt_id": prompt.id,
                    "name": list(prompt.spans),
                    "start": [start for start, _ in prompt.spans.values()],
                    "stop": [stop for _, stop in prompt.spans.values()],
                },
            )
        for table, blocks in rows.items():
            for block in blocks:
                part.add(table, {"prompt_id": prompt.id, **block})


def prompt_columns(prompt: Prompt) -> Columns:
    """Return the `prompts` row of a prompt."""
    return {
        "prompt_id": [prompt.id],
        "name": [prompt.name],
        "prompt_set": [prompt.prompt_set],
        "grp": [prompt.group],
        "pair_id": [prompt.pair_id],
        "n_tokens": [len(prompt.token_ids)],
        "bos_mode": [prompt.bos_mode],
        "template": [prompt.template],
        "metadata": [json.dumps(prompt.metadata)],
        "answer_ids": [list(prompt.answer_ids)],
        "foil_ids": [list(prompt.foils)],
    }


def _finish(run: _Run, trace: Path) -> RunHandle:
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


def estimate(session: Session, prompts: Sequence[Prompt], n_runs: int, keep: Sequence[str] = ()) -> Iterator[tuple[str, float]]:
    """Yield (what, megabytes) that a capture would add to a trace; measured bytes a row on the default model."""
    tokens = sum(len(prompt) for prompt in prompts) * session.n_layers * session.n_heads * n_runs / 1e6
    yield "edges", tokens * 3.1 * 8
    yield "row_stats", tokens * 20
    yield "value_norms", tokens * 4
    if "qk" in keep:
        yield "q and k", tokens * (1 + session.n_kv_heads / session.n_heads) * 64 * 4
