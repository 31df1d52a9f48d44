"""What heads look at while an answer is produced that stands in the context: one row of attention a step, no map.

The question is one prefill, every produced token one decode call, as in Wu et al. (arXiv 2404.15574); the row that
produces the first token is the prefill's last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.kernel import Attended
from sparselens.kernels.selection import Selection
from sparselens.kernels.statistics import Want
from sparselens.workbench.prompt import Prompt

BAG = 0.9
"""Where the answer is tokenised differently in the needle: share of its ids that a window must cover (as Wu et al.)."""


@dataclass(frozen=True)
class Place:
    """Where a prompt's answer stands in its needle: `positions`, and whether as the same tokens (`exact`)."""

    positions: tuple[int, ...]
    exact: bool


def answer_place(prompt: Prompt) -> Place | None:
    """Return where the answer's tokens stand inside the span `needle`, every time; None where they do not.

    A first token that is cut differently there (a leading space) is found by the bag of ids, as the authors' code
    does: the first window that covers more than 90 % of the answer's different ids.
    """
    start, stop = prompt.spans["needle"]
    ids, answer = prompt.token_ids, prompt.answer_ids
    width = len(answer)
    windows = [range(at, at + width) for at in range(start, stop - width + 1)]
    exact = [window for window in windows if tuple(ids[at] for at in window) == answer]
    if exact:
        return Place(tuple(sorted({at for window in exact for at in window})), exact=True)
    wanted = set(answer)
    for window in windows:
        if len(wanted & {ids[at] for at in window}) > BAG * len(wanted):
            return Place(tuple(window), exact=False)
    return None


@dataclass(eq=False)
class RetrievalWatch:
    """An observer of a walk (`workbench.generation.walked`): for each step the strongest key of every head.

    `keys [n]` are positions. By layer, one entry a step: `strongest [heads]` the position read most, `mass [heads, n]`
    the executed weights of the keys, `kept [heads, n]` whether the policy kept them.
    """

    keys: Tensor
    strongest: dict[int, list[Tensor]] = field(default_factory=dict)
    mass: dict[int, list[Tensor]] = field(default_factory=dict)
    kept: dict[int, list[Tensor]] = field(default_factory=dict)

    def want(self, call: AttentionCall) -> Want:
        """Ask for the strongest key of each row and the weights at the keys."""
        at = self._index(call)
        gather = at.expand(1, call.heads, call.q_len, -1).contiguous()
        return Want(frozenset({"top", "gathered"}), top=1, gather=gather)

    def saw(self, call: AttentionCall, selection: Selection, attended: Attended) -> None:
        """Keep the last row's."""
        statistics, at, last = attended.statistics, self._index(call), call.q_len
        top = statistics["top_index"][0, :, -1, 0]
        kept = selection.kept(call, last - 1, last)[0, :, 0].expand(call.heads, -1)
        self.strongest.setdefault(call.layer, []).append(call.key_positions[0][top.clamp(min=0)].cpu())
        self.mass.setdefault(call.layer, []).append(statistics["gathered"][0, :, -1].float().cpu())
        self.kept.setdefault(call.layer, []).append((kept[:, at.clamp(min=0)] & (at >= 0)).cpu())

    def _index(self, call: AttentionCall) -> Tensor:
        """Return where the keys lie among the call's keys, -1 for those that a native window has let go: `[n]`."""
        first = int(call.key_positions[0, 0])
        index = self.keys.to(call.device) - first
        return torch.where((index >= 0) & (index < call.k_len), index, -1)

    def stacked(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return strongest `[steps, layers, heads]`, mass and kept `[steps, layers, heads, n]`."""
        layers = sorted(self.strongest)
        made = [
            torch.stack([torch.stack(kept[layer]) for layer in layers], dim=1)
            for kept in (self.strongest, self.mass, self.kept)
        ]
        return made[0], made[1], made[2]


def found_at(answer: Sequence[int], produced: Sequence[int]) -> int | None:
    """Return the step at which the answer begins in what was produced, None where it was not produced whole."""
    width = len(answer)
    for step in range(len(produced) - width + 1):
        if tuple(produced[step : step + width]) == tuple(answer):
            return step
    return None


def recall(answer: Sequence[int], produced: Sequence[int]) -> float:
    """Return the share of the answer's tokens that were produced, each as often as it was produced (ROUGE-1 recall)."""
    left = list(produced)
    hits = 0
    for token in answer:
        if token in left:
            left.remove(token)
            hits += 1
    return hits / len(answer)


def hits(strongest: Tensor, place: Sequence[int], ids: Sequence[int], produced: Sequence[int]) -> Tensor:
    """Return whether each head copied: bool `[steps, layers, heads]`.

    A hit is the strongest key lying in the answer's place and being the token that the step produces (not the one
    that is fed).
    """
    inside = torch.isin(strongest, torch.tensor(place))
    tokens = torch.tensor([*ids, *produced])
    return inside & (tokens[strongest] == torch.tensor(produced)[: len(strongest), None, None])


def wu_scores(hit: Tensor, answer: Sequence[int], produced: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return both forms of the retrieval score of one run: two `[layers, heads]`.

    `sum`, as the authors' code has it: every hit adds 1 ÷ the answer's tokens (a repeated token may count twice).
    `set`, as the paper writes it: the share of the answer's different tokens that were hit.
    """
    different = sorted(set(answer))
    reached = [
        hit[[step for step, token in enumerate(produced[: len(hit)]) if token == one]].any(0)
        for one in different
    ]
    return hit.float().sum(0) / len(answer), torch.stack(reached).float().mean(0)
