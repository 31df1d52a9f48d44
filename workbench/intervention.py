"""Interventions: what chosen heads hand to the output projection instead of what the policy's kernel computed.

Each is an `Editor` for `session.under(policy, editors=[…])`. Restores say what a head is given back: `RunDense` (it
attends densely to what now arrives), `PatchPattern` (the base's pattern on current values), `PatchZ` (the base's
output). `Ablate` takes a head away: `zero`, `mean` over stated data, or `uniform` (it averages the values of all the
keys that the model allows, as in the masking experiment of Wu et al., arXiv 2404.15574, whose code sets queries to 0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.head import Head, by_layer
from sparselens.kernels.kernel import Attended, Kernel
from sparselens.kernels.policy import Memory, Policy
from sparselens.kernels.selection import Everything, Selection
from sparselens.kernels.statistics import NOTHING, Want
from sparselens.workbench.prompt import Prompt

RESTORES = ("run_dense", "patch_pattern", "patch_z")
ABLATIONS = ("zero", "mean", "uniform")
PHASES = ("both", "prefill", "decode")


@dataclass(frozen=True)
class Rows:
    """The rows that are edited: of the prompt (`prefill`), of the answer (`decode`), or `both`.

    `answer` is the position of the answer's first token: from that row on, generation would be decoding. The row that
    predicts the first answer token stands before it and belongs to the prompt.
    """

    phase: str = "both"
    answer: int | None = None

    def __post_init__(self) -> None:
        if self.phase not in PHASES:
            raise ValueError(f"phase is one of {', '.join(PHASES)}, not {self.phase!r}")

    @classmethod
    def of(cls, prompt: Prompt, phase: str) -> Rows:
        """Return the rows of a prompt in a phase; `ValueError` where it has no answer to tell the phases apart."""
        if phase != "both" and not prompt.answer_ids:
            raise ValueError(
                f"{prompt.name} has no answer: only phase both can be told apart from nothing on it"
            )
        return cls(phase, len(prompt) - len(prompt.answer_ids))

    def mask(self, call: AttentionCall) -> Tensor | None:
        """Return which query rows of a call are edited: bool `[batch or 1, 1, q_len, 1]`, None for all of them."""
        if self.phase == "both":
            return None
        if self.answer is None:
            raise ValueError(f"phase {self.phase} needs to know where the answer starts")
        late = call.query_positions >= self.answer
        return (late if self.phase == "decode" else ~late)[:, None, :, None]


@dataclass(frozen=True, eq=False)
class _OnHeads:
    """What all interventions share: the heads by layer, the rows, and how the new output is put in place."""

    heads: Mapping[int, tuple[int, ...]]
    rows: Rows

    def edit(self, call: AttentionCall, selection: Selection, output: Tensor) -> Tensor:
        """Return the layer's output `[batch, heads, q_len, head_dim]` with the chosen heads replaced."""
        del selection
        chosen = self.heads.get(call.layer, ())
        if not chosen:
            return output
        if max(chosen) >= call.heads:
            raise ValueError(
                f"layer {call.layer} has {call.heads} heads: there is no L{call.layer}H{max(chosen)}"
            )
        index = torch.tensor(chosen, device=call.device)
        before = output[:, index]
        after = self.replacement(call, index, before).to(output.dtype)
        mask = self.rows.mask(call)
        edited = output.clone()
        edited[:, index] = after if mask is None else torch.where(mask, after, before)
        return edited

    def replacement(self, call: AttentionCall, index: Tensor, before: Tensor) -> Tensor:
        """Return what the heads `index [n]` hand on: `[batch, n, q_len, head_dim]`; `before` is what they did."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class RunDense(_OnHeads):
    """The heads attend to every key that the model allows, on the queries, keys and values that now arrive."""

    kernel: Kernel

    def replacement(self, call: AttentionCall, index: Tensor, before: Tensor) -> Tensor:
        """Return their dense output."""
        del before
        return self.kernel.attend(call_of_heads(call, index), Everything(), NOTHING).output


@dataclass(frozen=True, eq=False)
class PatchPattern(_OnHeads):
    """The heads weigh current values by the pattern that they had in the base run."""

    kernel: Kernel
    base: Snapshot

    def replacement(self, call: AttentionCall, index: Tensor, before: Tensor) -> Tensor:
        """Return the base's pattern times the current values."""
        del before
        then = self.base.layers[call.layer]
        past = call.with_tensors(then.query, then.key, call.value)
        kept = self.base.policy.selection_for(past, Memory())
        return self.kernel.attend(call_of_heads(past, index), kept.of_heads(index), NOTHING).output


@dataclass(frozen=True, eq=False)
class PatchZ(_OnHeads):
    """The heads hand on what they handed on in the base run."""

    base: Snapshot

    def replacement(self, call: AttentionCall, index: Tensor, before: Tensor) -> Tensor:
        """Return the base's output of the heads."""
        del before
        return self.base.layers[call.layer].output[:, index]


@dataclass(frozen=True, eq=False)
class Ablate(_OnHeads):
    """The heads hand on nothing (`zero`), their `means [layers, heads, head_dim]`, or a `uniform` average."""

    kind: str
    kernel: Kernel
    means: Tensor | None = None

    def __post_init__(self) -> None:
        if self.kind not in ABLATIONS:
            raise ValueError(f"ablations are {', '.join(ABLATIONS)}, not {self.kind!r}")
        if self.kind == "mean" and self.means is None:
            raise ValueError("a mean ablation needs the means of the heads over stated data")

    def replacement(self, call: AttentionCall, index: Tensor, before: Tensor) -> Tensor:
        """Return zeros, the heads' means in every row, or the average of all values that a row may see."""
        if self.means is not None and self.kind == "mean":
            return self.means[call.layer].to(before)[index][None, :, None].expand_as(before)
        if self.kind == "zero":
            return torch.zeros_like(before)
        cut = call_of_heads(call, index)
        return self.kernel.attend(
            replace(cut, query=torch.zeros_like(cut.query)), Everything(), NOTHING
        ).output


def call_of_heads(call: AttentionCall, index: Tensor) -> AttentionCall:
    """Return the call of some query heads `index [n]` alone, each with its own copy of its key-value head."""
    shared = index // call.group
    return replace(
        call,
        query=call.query[:, index],
        key=call.key[:, shared],
        value=call.value[:, shared],
        sinks=None if call.sinks is None else call.sinks[index],
        query_raw=None,
        key_raw=None,
    )


@dataclass(frozen=True, eq=False)
class Seen:
    """Query, key and output of one layer: `[1, heads or kv_heads, tokens, head_dim]`."""

    query: Tensor
    key: Tensor
    output: Tensor


@dataclass(eq=False)
class Snapshot:
    """An observer that keeps what a patch needs of a run under `policy`: the layers in `wanted`, of one prompt.

    36 bytes × heads × head_dim a token and layer at three key-value groups of three: keep only layers that are
    patched.
    """

    policy: Policy
    wanted: frozenset[int]
    layers: dict[int, Seen] = field(default_factory=dict)

    def want(self, call: AttentionCall) -> Want:
        """Ask for no statistics."""
        del call
        return NOTHING

    def saw(self, call: AttentionCall, selection: Selection, attended: Attended) -> None:
        """Keep the layer's tensors."""
        del selection
        if call.phase == "prefill" and call.layer in self.wanted:
            self.layers[call.layer] = Seen(call.query, call.key, attended.output)


def intervention(
    kind: str,
    heads: Sequence[Head],
    rows: Rows,
    kernel: Kernel,
    *,
    base: Snapshot | None = None,
    means: Tensor | None = None,
) -> Any:
    """Return the editor of that name on `heads`.

    Raises `ValueError` for an unknown kind, and for a patch without the `base` it takes from.
    """
    where = by_layer(heads)
    if kind == "run_dense":
        return RunDense(where, rows, kernel)
    if kind in ABLATIONS:
        return Ablate(where, rows, kind, kernel, means)
    if kind not in RESTORES:
        raise ValueError(f"interventions are {', '.join((*RESTORES, *ABLATIONS))}, not {kind!r}")
    if base is None:
        raise ValueError(f"{kind} takes from a base run: give one")
    return PatchZ(where, rows, base) if kind == "patch_z" else PatchPattern(where, rows, kernel, base)
