"""What every head reads in a few places of one prompt, and what the policy keeps there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.kernel import Attended
from sparselens.kernels.selection import Selection
from sparselens.kernels.statistics import NOTHING, Want


class ReadWatch:
    """An observer of one sequence: at each `(row, key)` the executed attention, and whether the key is kept.

    `mass` and `kept` `[places, layers, heads]`; `density` is kept ÷ allowed pairs of all layers and heads.
    """

    def __init__(self, places: Sequence[tuple[int, int]]) -> None:
        self.places = places
        self._mass: list[Tensor] = []
        self._kept: list[Tensor] = []
        self._density: list[Tensor] = []

    def want(self, call: AttentionCall) -> Want:
        """Ask for no statistics."""
        del call
        return NOTHING

    def saw(self, call: AttentionCall, selection: Selection, attended: Attended) -> None:
        """Read the places of one layer."""
        mass, kept = [], []
        for row, key in self.places:
            keeps = selection.kept(call, row, row + 1)[0, :, 0, key].expand(call.heads)
            score = call.scores(row, row + 1)[0, :, 0, key].float()
            mass.append(torch.exp(score - attended.lse[0, :, row].float()) * keeps)
            kept.append(keeps)
        self._mass.append(torch.stack(mass))
        self._kept.append(torch.stack(kept))
        self._density.append(selection.density(call)[0])

    @property
    def mass(self) -> Tensor:
        """Attention in the places `[places, layers, heads]`."""
        return torch.stack(self._mass, 1)

    @property
    def kept(self) -> Tensor:
        """Whether the policy keeps them, bool `[places, layers, heads]`."""
        return torch.stack(self._kept, 1)

    @property
    def density(self) -> float:
        """Kept ÷ allowed pairs."""
        return float(torch.stack(self._density).mean())
