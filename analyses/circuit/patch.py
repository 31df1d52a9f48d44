"""What is left of a behaviour when only a circuit's edges carry it: exact passes of the model under a policy.

Every edge outside the circuit carries what its sender writes on the reference prompts, on average, position by
position, under the same policy; with one reference that is an interchange (Hanna et al., arXiv 2403.17806). A head may
be kept on the way into one receiver and cut on the way into the next. The policy selects on what arrives in the pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparselens.analyses.circuit.graph import Graph
from sparselens.analyses.circuit.mix import Mix
from sparselens.analyses.circuit.place import Ports, Visitor
from sparselens.analyses.circuit.port import ports_of
from sparselens.analyses.circuit.writes import Recorder, Writes
from sparselens.analyses.stage import answer_rows
from sparselens.kernels.head import Head, by_layer
from sparselens.kernels.kernel import Kernel
from sparselens.kernels.policy import Policy
from sparselens.workbench.passage import Passage, recorded, resumed
from sparselens.workbench.prompt import Prompt
from sparselens.workbench.session import Session, decoder_layers

Metric = Callable[[Tensor], Tensor]
"""From the logits `[vocabulary]` of the row that predicts the first answer token to a number, differentiable."""


@dataclass(frozen=True)
class LogitDifference:
    """The mean logit of the right tokens minus that of the wrong ones."""

    right: tuple[int, ...]
    wrong: tuple[int, ...]

    def __call__(self, logits: Tensor) -> Tensor:
        """Return it."""
        return logits[list(self.right)].mean() - logits[list(self.wrong)].mean()


@dataclass(frozen=True)
class ProbabilityDifference:
    """The probability of the right tokens minus that of the wrong ones."""

    right: tuple[int, ...]
    wrong: tuple[int, ...]

    def __call__(self, logits: Tensor) -> Tensor:
        """Return it."""
        likely = torch.softmax(logits, -1)
        return likely[list(self.right)].sum() - likely[list(self.wrong)].sum()


@dataclass(frozen=True)
class Pair:
    """A prompt, the prompts that ablated values are means over, each as long as it, and what is measured."""

    clean: Prompt
    references: tuple[Prompt, ...]
    metric: Metric

    def __post_init__(self) -> None:
        if not self.references:
            raise ValueError(f"{self.clean.name} has no reference prompts: give at least one of its length")
        for other in self.references:
            if len(other) != len(self.clean):
                raise ValueError(
                    f"{other.name} has {len(other)} tokens and {self.clean.name} {len(self.clean)}: references are as"
                    " long as the clean prompt"
                )


class _Swap(Visitor):
    """Heads hand on what they handed on in the references."""

    def __init__(self, ports: Ports, heads: Sequence[Head], ablated: Writes) -> None:
        self.ports, self.heads, self.ablated = ports, by_layer(heads), ablated

    def hands_on(self, layer: int, z: Tensor) -> Tensor | None:
        """Return their values in place of the current ones."""
        chosen = list(self.heads.get(layer, ()))
        if not chosen:
            return None
        edited = self.ports.layers[layer].by_head(z).clone()
        edited[chosen] = self.ablated.z[layer, chosen].to(z.dtype)
        return edited.transpose(0, 1).flatten(1)[None]


class Run:
    """A pair under a policy, run once; circuits then run the layers that they change.

    Holds 4 bytes × senders × d_model a token (0.69 MB on the default model), and a fifth of that for what was written.
    """

    def __init__(self, session: Session, pair: Pair, policy: Policy | str, kernel: Kernel | str) -> None:
        _ = session.readout
        self.session, self.pair, self.policy, self.kernel = session, pair, policy, kernel
        self.row: int = answer_rows(pair.clean).start
        self.ports = ports_of(session)
        self.graph: Graph = self.ports.graph
        self.clean, self._full, self._passage = self._recorded(pair.clean)
        self.ablated = Writes.mean([self._recorded(prompt)[0] for prompt in pair.references])
        self._buffer: Tensor | None = None

    def full(self) -> float:
        """Return the metric of the model as it is, under the policy."""
        return self._full

    @torch.no_grad()
    def empty(self) -> float:
        """Return the metric where everything is ablated."""
        stream = self.ablated.stream[self.row].to(self.session.dtype)
        return self._metric(self.ports.norm.forward(stream[None, None])[0, 0])

    @torch.no_grad()
    def circuit(self, edges: Tensor) -> float:
        """Return the metric where only `edges`, bool `[senders, receivers]`, carry what flows in this pass."""
        dropped = self.graph.allowed & ~self.graph.checked(edges)
        first = self._first(dropped)
        mix = Mix(self.ports, dropped.to(self.session.device), self.ablated, self.difference(first), self.row)
        return self._patched(mix, first)

    @torch.no_grad()
    def without_heads(self, heads: Sequence[Head]) -> float:
        """Return the metric where heads write their ablated values to whoever reads them."""
        for layer, head in heads:
            if not (0 <= layer < self.graph.layers and 0 <= head < self.graph.heads):
                raise ValueError(
                    f"there is no L{layer}H{head}: {self.graph.layers} layers of {self.graph.heads} heads"
                )
        first = min((layer for layer, _ in heads), default=self.graph.layers)
        return self._patched(_Swap(self.ports, heads, self.ablated), first)

    def difference(self, layers: int | None = None) -> Tensor:
        """Return ablated − clean of the senders before a layer, or of all: `[senders, tokens, d_model]`.

        One buffer, written anew by every call and by every circuit.
        """
        if self._buffer is None:
            size = (len(self.graph.senders), *self.clean.embedding.shape)
            self._buffer = self.clean.embedding.new_empty(size)
        count = self.graph.layers if layers is None else layers
        self.ablated.minus(self.clean, self.ports, self._buffer, range(count))
        return self._buffer

    def measured(self, states: Tensor) -> Tensor:
        """Return the metric of final states `[tokens, d_model]` as a tensor, with its graph where there is one."""
        return self.pair.metric(self.session.readout.logits(states[self.row : self.row + 1])[0])

    def states(self) -> Tensor:
        """Run the clean prompt, inside `under`; returns the final states `[tokens, d_model]`."""
        return self._states(self.pair.clean)

    def _first(self, dropped: Tensor) -> int:
        """Return the first layer that reads along a dropped edge."""
        places = dropped.any(0).nonzero()[:, 0]
        return self.graph.layers if not len(places) else int(places[0]) // (self.graph.n_reading + 1)

    def _states(self, prompt: Prompt) -> Tensor:
        ids = torch.tensor([prompt.token_ids], device=self.session.device)
        decoder: Any = self.session.model.get_decoder()
        states: Tensor = decoder(input_ids=ids, use_cache=False).last_hidden_state[0]
        return states

    def _metric(self, state: Tensor) -> float:
        return float(self.pair.metric(self.session.readout.logits(state[None])[0]))

    @torch.no_grad()
    def _recorded(self, prompt: Prompt) -> tuple[Writes, float, Passage]:
        """Run a prompt as it is; returns what was written, the metric, and what every layer returned."""
        recorder = Recorder(self.ports)
        with (
            self.session.under(self.policy, kernel=self.kernel) as execution,
            recorded(decoder_layers(self.session.model), execution) as passage,
            self.ports.visited(recorder),
        ):
            states = self._states(prompt)
        return recorder.writes, self._metric(states[self.row]), passage

    def _patched(self, visitor: Visitor, first: int) -> float:
        """Run the clean prompt from a layer on with a visitor; returns the metric."""
        with ExitStack() as stack:
            execution = stack.enter_context(self.session.under(self.policy, kernel=self.kernel))
            stack.enter_context(self.ports.visited(visitor))
            stack.enter_context(resumed(self._passage, first, execution))
            return self._metric(self.states()[self.row])
