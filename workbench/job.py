"""The work of a capture: one prompt under the base and every policy, from forward pass to committed rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparselens.kernels.kernel import Kernel
from sparselens.kernels.kernel import kernel as kernel_named
from sparselens.workbench.commit import (
    add_predictions,
    add_prompt,
    add_removals,
    add_scores,
    part_of,
)
from sparselens.workbench.decode import decoded_tokens
from sparselens.workbench.generation import continue_greedily
from sparselens.workbench.keep import Keeper, keeper_of
from sparselens.workbench.probe import Columns, Probe, Write, probes
from sparselens.workbench.progress import Progress
from sparselens.workbench.projection import OutputProjection
from sparselens.workbench.prompt import Prompt
from sparselens.workbench.readout import Predictions, Readout
from sparselens.workbench.recorder import Recorder, projections_of, watched
from sparselens.workbench.run import Making
from sparselens.workbench.session import Session, attention_layers, decoder_layers
from sparselens.workbench.spool import Spool

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
    decode: int | str | None = None


@dataclass(eq=False)
class Job:
    """What stays the same from prompt to prompt."""

    session: Session
    options: Options
    runs: list[Making]
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
        generated: dict[str, Columns | None] = {}
        with ExitStack() as stack:
            # left in the order of the runs: the base is committed first
            parts = {run.run_id: stack.enter_context(part_of(run, prompt)) for run in reversed(todo)}
            for run in needed:
                bar.says(f"{prompt.name} · {run.policy}")
                started = time.perf_counter()
                part = parts.get(run.run_id)
                write = None if part is None else part.add
                recorder, hidden[run.run_id] = self._forward(prompt, run, write, paired=len(needed) > 1)
                affected[run.run_id] = recorder.affected_rows()
                generated[run.run_id] = (
                    self._generate(prompt, run) if self.options.generate and part else None
                )
                run.seconds += time.perf_counter() - started
                bar.advance(len(prompt))
            ids = torch.tensor(prompt.token_ids)
            base_id = None if self.base is None else self.base.run_id
            predictions = self.readout.read(hidden, ids, base_id)
            for run in todo:
                part, found, answer = parts[run.run_id], predictions[run.run_id], generated[run.run_id]
                if answer is not None:
                    part.add("generations", answer)
                add_prompt(part, prompt)
                add_predictions(part, found, affected[run.run_id], prompt, run, base_id)
                add_scores(part, self._scores(prompt, hidden[run.run_id], found, answer), prompt, run)
        self.spool.clear()
        bar.finished_prompt()

    @torch.no_grad()
    def _forward(
        self, prompt: Prompt, run: Making, write: Write | None, *, paired: bool
    ) -> tuple[Recorder, Tensor]:
        """Record one prompt under one run; returns the recorder and the final hidden states `[tokens, d_model]`.

        Rows go to `write` layer by layer; None where the run has this prompt and only serves as a base.
        """
        session, model = self.session, self.session.model
        decoded = decoded_tokens(prompt, self.options.decode)
        recorder = Recorder(
            prompt=prompt,
            policy=run.policy,
            kernel=self.kernel,
            probes=self.probes,
            projections=self.projections,
            spool=self.spool if paired and self.base is not None else None,
            write=write,
            is_base=run.is_base,
            run_name=run.run_id,
            base_name="" if self.base is None else self.base.run_id,
            heads=self.heads,
            decoded=decoded,
        )
        observers: list[Any] = [recorder]
        keeper: Keeper | None = None if write is None else keeper_of(session, self.options.keep)
        if keeper is not None and write is not None:
            keeper.start(write, self.heads)
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
            execution = stack.enter_context(
                session.under(run.policy, kernel=self.kernel, observers=observers, decode=decoded or None)
            )
            states = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0]
        if write is not None:
            add_removals(write, execution.memory.removals, self.heads, session.n_heads // session.n_kv_heads)
        run.calls += execution.selections
        run.dense_calls += execution.dense_calls
        if run.verifier is not None:
            run.verifier.finish(execution, states, self.readout)
        return recorder, states

    def _generate(self, prompt: Prompt, run: Making) -> Columns:
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
            "correct": [
                token == answer[step] if step < len(answer) else None for step, token in enumerate(produced)
            ],
        }

    @torch.no_grad()
    def _scores(
        self, prompt: Prompt, hidden: Tensor, predictions: Predictions, generated: Columns | None
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
            if generated is not None:
                correct = generated["correct"][: len(prompt.answer_ids)]
                scores["answer_generated"] = float(len(correct) == len(prompt.answer_ids) and all(correct))
        return scores
