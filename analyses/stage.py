"""One prompt under one policy, ready to be intervened on: what becomes of its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparselens.kernels.kernel import Kernel
from sparselens.kernels.policy import Policy
from sparselens.workbench.passage import Passage, recorded, resumed
from sparselens.workbench.prompt import Prompt
from sparselens.workbench.session import Session, decoder_layers

OUTCOMES = ("answer_nll", "first_token", "whole_answer")
"""Loss of the answer (nats a token), whether its first token, and whether all of it, is the most probable."""


def answer_rows(prompt: Prompt) -> slice:
    """Return the rows that predict the answer; `ValueError` where a prompt has none."""
    if not prompt.answer_ids:
        raise ValueError(
            f"{prompt.name} has no answer: give prompts with answers, such as needles(length=256)"
        )
    start = len(prompt) - len(prompt.answer_ids)
    return slice(start - 1, len(prompt) - 1)


def answer_losses(session: Session, states: Tensor, prompt: Prompt) -> Tensor:
    """Return the loss of each answer token from final states `[tokens, d_model]`: `[answer tokens]`, in nats."""
    logits = session.readout.logits(states[answer_rows(prompt)])
    target = torch.tensor(prompt.answer_ids, device=logits.device)
    return torch.nn.functional.cross_entropy(logits, target, reduction="none")


def outcome(session: Session, states: Tensor, prompt: Prompt) -> Any:
    """Return the `OUTCOMES` of a prompt from its final states `[tokens, d_model]`: float64 `[3]`."""
    logits = session.readout.logits(states[answer_rows(prompt)])
    target = torch.tensor(prompt.answer_ids, device=logits.device)
    loss = torch.nn.functional.cross_entropy(logits, target)
    right = logits.argmax(-1) == target
    return np.array([float(loss), float(right[0]), float(right.all())])


@dataclass(eq=False)
class Stage:
    """A prompt that has run once under a policy; interventions run only the layers that they can change."""

    session: Session
    prompt: Prompt
    policy: Policy
    kernel: Kernel

    def __post_init__(self) -> None:
        _ = self.session.readout
        self._passage: Passage | None = None
        self._plain: Any = None

    @torch.no_grad()
    def plain(self, observers: Sequence[Any] = ()) -> Any:
        """Return what becomes of the answer without an intervention; `observers` see a fresh forward pass."""
        if self._plain is None or observers:
            with (
                self.session.under(self.policy, kernel=self.kernel, observers=observers) as execution,
                recorded(decoder_layers(self.session.model), execution) as passage,
            ):
                states = self._states()
            self._passage, self._plain = passage, outcome(self.session, states, self.prompt)
        return self._plain

    @torch.no_grad()
    def tried(self, editor: Any, first: int) -> Any:
        """Return what becomes of the answer with an editor whose first layer is `first`."""
        self.plain()
        if self._passage is None:
            raise RuntimeError("a stage has run once before it is intervened on")
        with (
            self.session.under(self.policy, kernel=self.kernel, editors=[editor]) as execution,
            resumed(self._passage, first, execution),
        ):
            return outcome(self.session, self._states(), self.prompt)

    def _states(self) -> Tensor:
        ids = torch.tensor([self.prompt.token_ids], device=self.session.device)
        decoder: Any = self.session.model.get_decoder()
        states: Tensor = decoder(input_ids=ids, use_cache=False).last_hidden_state[0]
        return states
