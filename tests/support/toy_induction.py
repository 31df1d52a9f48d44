"""A toy that has to become an induction circuit, and one that can cheat.

`<s> prefix r filler r rest`, all other tokens distinct; the loss is on the second r. Where the gap varies, only
"after the same token as before" works (previous-token head, then induction head); where it is fixed, a head that looks
back by a fixed number of tokens does as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from toy_model import ToyConfig
from toy_training import Toy, trained

VOCABULARY = 64
TOKENS = 48
SHORTEST, LONGEST = 8, 16
FIXED_HALF, FIXED_GAP = 12, 6


@dataclass(frozen=True, eq=False)
class Repeated:
    """Sequences `ids [n, tokens]`: what rows predict (`labels`, -100 = not asked), and where they can read it.

    `sources [n, tokens]`: the key after the same token's earlier place, -1 where nothing is asked.
    """

    ids: Tensor
    labels: Tensor
    sources: Tensor

    @property
    def distances(self) -> Tensor:
        """How far back the source of each asked row is, flat."""
        asked = self.sources >= 0
        return (torch.arange(self.ids.shape[1]) - self.sources)[asked]


def repeated(n: int, draw: torch.Generator, *, fixed: bool = False) -> Repeated:
    """Draw sequences; `fixed`: half and gap are always the same, so that the offset is."""

    def up_to(most: Tensor) -> Tensor:
        return (torch.rand(n, generator=draw) * (most + 1)).long()

    half = SHORTEST + up_to(torch.full((n,), LONGEST - SHORTEST))
    half = torch.full((n,), FIXED_HALF) if fixed else half
    room = TOKENS - 1 - 2 * half
    prefix = up_to(room - FIXED_GAP if fixed else room)
    gap = torch.full((n,), FIXED_GAP) if fixed else up_to(room - prefix)
    period, again = (half + gap)[:, None], (1 + prefix + half + gap)[:, None]
    place = torch.arange(TOKENS).expand(n, -1)
    second = (place >= again) & (place < again + half[:, None])
    tokens = 1 + torch.rand(n, VOCABULARY - 1, generator=draw).argsort(-1)[:, :TOKENS]
    tokens[:, 0] = 0
    ids = tokens.gather(1, torch.where(second, place - period, place))
    asked = second & (place < again + half[:, None] - 1)
    following = ids.roll(-1, 1)
    return Repeated(ids, torch.where(asked, following, -100), torch.where(asked, place - period + 1, -1))


@cache
def induction_toy(seed: int = 0, *, heads: int = 1, fixed: bool = False) -> Toy:
    """Train two layers of attention alone on `repeated` sequences."""

    def batch(draw: torch.Generator) -> tuple[Tensor, Tensor, float]:
        made = repeated(64, draw, fixed=fixed)
        return made.ids, made.labels, 0.0

    config = ToyConfig(vocab_size=VOCABULARY, num_attention_heads=heads, max_position_embeddings=TOKENS)
    return trained(config, batch, seed=seed, target=0.02, most=2000)
