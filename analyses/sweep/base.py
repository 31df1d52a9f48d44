"""What the base leaves of one prompt: every layer's call and output, final states, and its predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.kernel import Attended, Kernel
from sparselens.kernels.policy import Policy
from sparselens.kernels.selection import Selection
from sparselens.kernels.statistics import NOTHING, Want
from sparselens.workbench.decode import decoded_tokens
from sparselens.workbench.execution import Execution
from sparselens.workbench.projection import OutputProjection, output_linear, residual_norm
from sparselens.workbench.prompt import Prompt
from sparselens.workbench.readout import ROWS
from sparselens.workbench.recorder import projections_of
from sparselens.workbench.session import Session, attention_layers

KEPT = 1 << 26
"""So many log-probabilities of the base (tokens × vocabulary) are kept; beyond that they are computed again."""


@dataclass(frozen=True, eq=False)
class Stand:
    """What all runs of a sweep share: the session, the base's policy, the kernel, how many tokens are decoded."""

    session: Session
    base: Policy
    kernel: Kernel
    decode: int | str | None
    projections: dict[int, OutputProjection]

    @classmethod
    def of(cls, session: Session, base: Policy, kernel: Kernel, decode: int | str | None) -> Stand:
        """Look at the model once."""
        _ = session.readout
        projections = projections_of(attention_layers(session.model), session.n_heads)
        return cls(session, base, kernel, decode, projections)

    @torch.no_grad()
    def run(self, prompt: Prompt, policy: Policy, observers: Sequence[Any] = ()) -> tuple[Tensor, Execution]:
        """Return the final states `[tokens, d_model]` of a prompt under a policy, and what ran."""
        ids = torch.tensor([prompt.token_ids], device=self.session.device)
        decoder: Any = self.session.model.get_decoder()
        decoded = decoded_tokens(prompt, self.decode) or None
        with self.session.under(policy, kernel=self.kernel, observers=observers, decode=decoded) as execution:
            states: Tensor = decoder(input_ids=ids, use_cache=False).last_hidden_state[0]
        return states, execution

    def log_probabilities(self, states: Tensor) -> Tensor:
        """Return the log-probabilities that final states give: float32 `[rows, vocabulary]`."""
        logits = self.session.readout.logits(states)
        return logits.sub_(torch.logsumexp(logits, -1, keepdim=True))


@dataclass(frozen=True, eq=False)
class BaseLayer:
    """One layer: the call, what its heads handed on `[heads, tokens, head_dim]`, the mean ‖attention output‖."""

    call: AttentionCall
    z: Tensor
    output_norm: Tensor


@dataclass(eq=False)
class Base:
    """One prompt under the base: its layers, its final states `[tokens, d_model]`."""

    stand: Stand
    prompt: Prompt
    layers: list[BaseLayer]
    states: Tensor
    _logp: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, stand: Stand, prompt: Prompt) -> Base:
        """Run the prompt under the base. One forward pass."""
        watch = _Calls()
        with _output_norms(stand.session) as norms:
            states, _ = stand.run(prompt, stand.base, [watch])
        layers = [BaseLayer(call, z, norm) for (call, z), norm in zip(watch.layers, norms, strict=True)]
        return cls(stand, prompt, layers, states)

    @torch.no_grad()
    def logp(self, start: int) -> Tensor:
        """Return log-probabilities of the `ROWS` rows from `start` on: float32 `[rows, vocabulary]`."""
        if start in self._logp:
            return self._logp[start]
        found = self.stand.log_probabilities(self.states[start : start + ROWS])
        if len(self.prompt) * found.shape[-1] <= KEPT:
            self._logp[start] = found
        return found


@contextmanager
def _output_norms(session: Session) -> Iterator[list[Tensor]]:
    """Yield a list that one forward pass fills with each layer's mean ‖attention output‖."""
    norms: list[Tensor] = []

    def look(_: Any, __: Any, output: Tensor) -> None:
        norms.append(residual_norm(output).mean())

    with ExitStack() as stack:
        for module in attention_layers(session.model):
            stack.callback(output_linear(module).register_forward_hook(look).remove)
        yield norms


@dataclass(eq=False)
class _Calls:
    """An observer that keeps every layer's call and output."""

    layers: list[tuple[AttentionCall, Tensor]] = field(default_factory=list)

    def want(self, call: AttentionCall) -> Want:
        """Ask for no statistics."""
        del call
        return NOTHING

    def saw(self, call: AttentionCall, selection: Selection, attended: Attended) -> None:
        """Keep the layer."""
        del selection
        self.layers.append((call, attended.output[0]))
