"""Observers that reduce every layer of a prompt to a few numbers a head, while attention runs. No map is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from sparselens.analyses.pattern_scores import entropy_share, is_sink, mean_on_targets, sink_alpha, targets
from sparselens.kernels.call import AttentionCall
from sparselens.kernels.kernel import Attended, Kernel
from sparselens.kernels.policy import Policy
from sparselens.kernels.selection import Selection
from sparselens.kernels.statistics import Want
from sparselens.workbench.execution import Execution
from sparselens.workbench.prompt import Prompt
from sparselens.workbench.session import Session

FAR = 64
"""Rows from this position on have keys that are not local, and the first token is not among their local keys."""


class Watch(Protocol):
    """An observer that is told which prompt comes, and holds `[heads, m]` of every layer when it has run."""

    names: tuple[str, ...]
    layers: dict[int, Tensor]

    def begin(self, ids: Tensor) -> None:
        """Forget the last prompt; the next has these ids `[tokens]`."""

    def want(self, call: AttentionCall) -> Want:
        """Return the statistics the kernel should reduce during this call."""

    def saw(self, call: AttentionCall, selection: Selection, attended: Attended) -> None:
        """Reduce what the kernel did to the layer's numbers."""


@dataclass(eq=False)
class TargetWatch:
    """Mean attention to the `TARGETS` of each row, and the share of them that the policy lets a head reach."""

    names: tuple[str, ...] = (
        "previous_token",
        "duplicate_token",
        "induction",
        "previous_token_reachable",
        "duplicate_token_reachable",
        "induction_reachable",
    )
    layers: dict[int, Tensor] = field(default_factory=dict)
    keys: Tensor = field(default_factory=lambda: torch.empty(0))

    def begin(self, ids: Tensor) -> None:
        """Find the targets of the prompt's rows."""
        self.layers, self.keys = {}, targets(ids)

    def want(self, call: AttentionCall) -> Want:
        """Ask for the weights at the targets."""
        keys = self.keys.to(call.device)[None, None].expand(1, call.heads, -1, -1)
        return Want(frozenset({"gathered"}), gather=keys.contiguous())

    def saw(self, call: AttentionCall, selection: Selection, attended: Attended) -> None:
        """Average over rows."""
        keys = self.keys.to(call.device)
        reached = torch.cat(
            [
                selection.kept(call, start, stop)[0]
                .expand(call.heads, -1, -1)
                .gather(-1, keys[start:stop].clamp(min=0).expand(call.heads, -1, -1))
                for start, stop in call.row_blocks()
            ],
            dim=1,
        )
        self.layers[call.layer] = torch.cat(
            [
                mean_on_targets(attended.statistics["gathered"][0], keys),
                mean_on_targets(reached.float(), keys),
            ],
            dim=-1,
        ).cpu()


@dataclass(eq=False)
class SinkWatch:
    """Gu et al.'s Sink_1 and alpha_1 of one window, and whether any later key is a sink."""

    epsilon: float
    names: tuple[str, ...] = ("sink_rate", "sink_alpha", "sink_rate_other")
    layers: dict[int, Tensor] = field(default_factory=dict)

    def begin(self, ids: Tensor) -> None:
        """Forget the last window."""
        del ids
        self.layers = {}

    def want(self, call: AttentionCall) -> Want:
        """Ask for the column sums."""
        del call
        return Want(frozenset({"received"}))

    def saw(self, call: AttentionCall, selection: Selection, attended: Attended) -> None:
        """Threshold this window: rates are taken over windows afterwards."""
        del selection
        seen_by = torch.stack(
            [call.allowed.rows(start, stop)[0, 0].sum(0) for start, stop in call.row_blocks()]
        ).sum(0)
        alpha = sink_alpha(attended.statistics["received"][0], seen_by)
        first, other = is_sink(alpha, self.epsilon)
        self.layers[call.layer] = torch.stack([first.float(), alpha[:, 0], other.float()], dim=-1).cpu()


@dataclass(eq=False)
class TextWatch:
    """How far and how sharply a head looks: means over the rows of one text."""

    names: tuple[str, ...] = ("local_mass", "global_mass", "sink_mass", "entropy_norm", "distance")
    layers: dict[int, Tensor] = field(default_factory=dict)

    def begin(self, ids: Tensor) -> None:
        """Forget the last text."""
        del ids
        self.layers = {}

    def want(self, call: AttentionCall) -> Want:
        """Ask for the row values."""
        del call
        return Want(frozenset({"entropy", "local_mass", "sink_mass", "distance"}), local=FAR)

    def saw(self, call: AttentionCall, selection: Selection, attended: Attended) -> None:
        """Average over the rows that have keys beyond the local ones."""
        rows = {name: values[0][:, FAR:] for name, values in attended.statistics.items()}
        kept = selection.counts(call)[0].expand(call.heads, -1)[:, FAR:]
        sharpness = entropy_share(rows["entropy"], kept)
        far = 1 - rows["local_mass"] - rows["sink_mass"]
        values = [rows["local_mass"], far, rows["sink_mass"], sharpness, rows["distance"]]
        self.layers[call.layer] = torch.stack([value.nanmean(-1) for value in values], dim=-1).cpu()


@torch.no_grad()
def looked(
    session: Session, policy: Policy | str, kernel: Kernel | str, prompt: Prompt, watch: Watch
) -> tuple[Tensor, Execution]:
    """Run one prompt and return its numbers `[layers, heads, m]` in the order of `watch.names`, and the execution."""
    decoder: Any = session.model.get_decoder()
    ids = torch.tensor([prompt.token_ids])
    watch.begin(ids[0])
    with session.under(policy, kernel=kernel, observers=[watch]) as execution:
        decoder(input_ids=ids.to(session.device), use_cache=False)
    return torch.stack([watch.layers[layer] for layer in sorted(watch.layers)]), execution


def watched(
    session: Session, policy: Policy | str, kernel: Kernel | str, prompts: Sequence[Prompt], watch: Watch
) -> Iterator[tuple[Prompt, Tensor, Execution]]:
    """Run each prompt alone and yield it with its numbers and its execution (see `looked`)."""
    for prompt in prompts:
        yield prompt, *looked(session, policy, kernel, prompt, watch)
