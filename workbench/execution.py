"""What is running: one policy and one kernel over one model, between entering and leaving `under(...)`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.gradient import attend_with_gradient, needs_gradient
from sparselens.kernels.kernel import Attended, Kernel
from sparselens.kernels.policy import Memory, Policy
from sparselens.kernels.selection import Selection
from sparselens.kernels.statistics import NOTHING, Want
from sparselens.kernels.walk import chosen

if TYPE_CHECKING:
    from sparselens.workbench.attention import MaskPlan
    from sparselens.workbench.rotation import Ropes


class Observer(Protocol):
    """Something that watches every attention call while a policy is active (a capture, a test).

    One that follows selections which change scores says so by an attribute `reads_bias`; others refuse them.
    """

    def want(self, call: AttentionCall) -> Want:
        """Return the statistics the kernel should reduce during this call."""

    def saw(self, call: AttentionCall, selection: Selection, attended: Attended) -> None:
        """Receive what the kernel did, before it leaves the layer."""


class Editor(Protocol):
    """Something that replaces what chosen heads hand to the output projection (see `workbench.intervention`)."""

    def edit(self, call: AttentionCall, selection: Selection, output: Tensor) -> Tensor:
        """Return the layer's output `[batch, heads, q_len, head_dim]`, edited or not."""


class LayerHooks(Protocol):
    """The hook points of one layer that fire inside attention (TransformerLens' bridge has them; plain HF does not)."""

    def rotate(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Fire `hook_rot_q` and `hook_rot_k`; return the tensors, edited or not."""

    @property
    def wants_pattern(self) -> bool:
        """Say whether somebody listens to `hook_attn_scores` or `hook_pattern`."""

    def scores(self, scores: Tensor) -> Tensor:
        """Fire `hook_attn_scores` on `[batch, heads, q_len, k_len]`."""

    def pattern(self, pattern: Tensor) -> Tensor:
        """Fire `hook_pattern` on `[batch, heads, q_len, k_len]`."""


@dataclass(eq=False)
class Execution:
    """One policy and kernel at work on one model. Counts what ran, so that a run can prove it.

    `calls` counts kernel calls, `skipped` layers that handed on what they did before (`workbench.passage`), `forwards`
    the model's forward passes, `selections` how often the policy was asked, `dense_calls` how often it left everything
    (another phase, or fewer keys than `dense_below`), `reference_layers` the layers where listening to the scores or
    the pattern switched the kernel to the explicit path. `observers` see what the kernel computed, `editors` then
    replace it. With `decode` the last so many tokens of a whole text are decoded one at a time, in the same pass
    (`kernels/walk.py`).
    """

    policy: Policy
    kernel: Kernel
    modules: frozenset[int]
    n_layers: int
    observers: tuple[Observer, ...] = ()
    editors: tuple[Editor, ...] = ()
    hooks: dict[int, LayerHooks] = field(default_factory=dict)
    decode: int | None = None
    memory: Memory = field(default_factory=Memory)
    calls: int = 0
    selections: int = 0
    skipped: int = 0
    forwards: int = 0
    dense_calls: int = 0
    reference_layers: set[int] = field(default_factory=set)
    ropes: Ropes | None = None
    step: int = 0

    def attend(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        plan: MaskPlan,
        *,
        scale: float,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """Run one layer's attention; returns `[batch, heads, q_len, head_dim]`."""
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        hooks = self.hooks.get(layer)
        if hooks is not None:
            query, key = hooks.rotate(query, key)
        decoding = query.shape[2] == 1 and key.shape[2] > 1
        self._start_of_sequence(layer, plan, decoding=decoding)
        call = AttentionCall(
            query=query,
            key=key,
            value=value,
            query_positions=plan.query_positions,
            key_positions=plan.key_positions,
            allowed=plan.allowed,
            scale=scale,
            softcap=softcap,
            sinks=sinks,
            layer=layer,
            phase="decode" if decoding else "prefill",
            step=self.step,
        )
        if self.ropes is not None:
            call = self.ropes.told(call, module)
        asked, dense = self.memory.calls, self.memory.dense_calls
        selection = chosen(self.policy, call, self.memory, self._decoded(call))
        self.selections += self.memory.calls - asked
        self.dense_calls += self.memory.dense_calls - dense
        self.calls += 1
        self._refuse_unread_bias(selection)
        if hooks is not None and hooks.wants_pattern:
            return self._edited(call, selection, self._explicit(call, selection, hooks))
        want = the_one([observer.want(call) for observer in self.observers])
        attended = (
            attend_with_gradient(self.kernel, call, selection, want)
            if needs_gradient(call)
            else self.kernel.attend(call, selection, want)
        )
        for observer in self.observers:
            observer.saw(call, selection, attended)
        return self._edited(call, selection, attended.output)

    def _refuse_unread_bias(self, selection: Selection) -> None:
        """Raise `ValueError` where an observer or editor would compute weights without what the policy adds."""
        if not selection.biased:
            return
        for watching in (*self.observers, *self.editors):
            if not getattr(watching, "reads_bias", False):
                raise ValueError(
                    f"{self.policy.name} changes scores, which {type(watching).__name__} does not follow"
                )

    def _decoded(self, call: AttentionCall) -> int | None:
        """Return how many rows of a call are decoded one at a time; None where the call is what it is."""
        if self.decode is None or call.phase == "decode" or int(call.allowed.query_index[0]) > 0:
            return None
        if self.decode >= call.q_len:
            raise ValueError(
                f"of a text of {call.q_len} tokens at most {call.q_len - 1} can be decoded, not {self.decode}"
            )
        return self.decode

    def _edited(self, call: AttentionCall, selection: Selection, output: Tensor) -> Tensor:
        for editor in self.editors:
            output = editor.edit(call, selection, output)
        return output

    def _start_of_sequence(self, layer: int, plan: MaskPlan, *, decoding: bool) -> None:
        """Forget the last sequence at the first layer of a new prompt; count the steps of a decode."""
        if layer != 0:
            return
        if int(plan.allowed.query_index[0]) == 0:
            self.memory.reset()
            self.step = 0
        elif decoding:
            self.step += 1

    def _explicit(self, call: AttentionCall, selection: Selection, hooks: LayerHooks) -> Tensor:
        """Run the layer with its whole pattern in memory, firing `hook_attn_scores` and `hook_pattern`.

        An edit takes effect; it cannot revive a dropped key. Raises while a capture is watching, because the
        statistics would describe a pattern that was not the one that wrote the output.
        """
        if self.observers:
            raise RuntimeError(
                f"layer {call.layer}: hooks on hook_attn_scores or hook_pattern cannot be combined with a capture"
            )
        if call.layer not in self.reference_layers:
            if not self.reference_layers:
                warnings.warn(
                    "hook_attn_scores or hook_pattern has listeners: those layers run the explicit reference path",
                    stacklevel=2,
                )
            self.reference_layers.add(call.layer)
        if call.sinks is not None:
            raise NotImplementedError("hook_pattern on a model with sink logits is not supported")
        allowed = call.allowed.rows(0, call.q_len)
        keep = (selection.rows(call, 0, call.q_len) & allowed).expand(
            call.batch, call.heads, call.q_len, call.k_len
        )
        raw, bias = call.scores(0, call.q_len), selection.bias_rows(call, 0, call.q_len)
        scores = hooks.scores((raw if bias is None else raw + bias).masked_fill(~keep, -torch.inf))
        scores = scores.masked_fill(~keep, -torch.inf)
        pattern = torch.softmax(scores, dim=-1, dtype=torch.float32).nan_to_num(0.0).to(call.value.dtype)
        pattern = hooks.pattern(pattern) * keep
        group_value = call.value.repeat_interleave(call.group, dim=1)
        return pattern @ group_value


def the_one(wants: Sequence[Want]) -> Want:
    """Return the want of the one observer that asks for statistics, `NOTHING` if none does."""
    asking = [want for want in wants if want.names]
    if not asking:
        return NOTHING
    if len(asking) > 1:
        raise RuntimeError("only one observer may ask for statistics at a time")
    return asking[0]


ACTIVE: ContextVar[tuple[Execution, ...]] = ContextVar("sparselens_active", default=())


def execution_of(module: torch.nn.Module) -> Execution:
    """Return the innermost active execution that owns `module`; raise where there is none."""
    for execution in reversed(ACTIVE.get()):
        if id(module) in execution.modules:
            return execution
    raise RuntimeError(
        "the `sparselens` attention ran outside `with sparselens.under(model, policy):`; enter it in this thread"
    )
