"""A toy that has to remember pairs: multi-query associative recall (Zoology, arXiv 2312.04927), by attention alone.

`k1 v1 k2 v2 …`, then each key once more somewhere among random fillers; at that row the model is asked for its value.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from toy_model import ToyConfig
from toy_training import Toy, trained

VOCABULARY = 256
TOKENS = 64
PAIRS = 4
POWER = 0.01


@dataclass(frozen=True, eq=False)
class Recall:
    """Sequences `ids [n, tokens]`, what rows predict (`labels`, -100 = not asked) and the keys that hold it.

    `values [n, tokens]`: where the value of the asked key stands, -1 where nothing is asked.
    """

    ids: Tensor
    labels: Tensor
    values: Tensor

    @property
    def distances(self) -> Tensor:
        """How far back the value of each asked row is, flat."""
        return (torch.arange(self.ids.shape[1]) - self.values)[self.values >= 0]


def recall(n: int, draw: torch.Generator) -> Recall:
    """Draw sequences; places of queries are drawn by weights g^(power − 1), g counted from 1, as in Zoology."""
    half = VOCABULARY // 2
    keys = 1 + torch.rand(n, half - 1, generator=draw).argsort(-1)[:, :PAIRS]
    values = half + torch.rand(n, half, generator=draw).argsort(-1)[:, :PAIRS]
    ids = torch.randint(VOCABULARY, (n, TOKENS), generator=draw)
    ids[:, : 2 * PAIRS] = torch.stack([keys, values], -1).flatten(1)
    slots = (TOKENS - 2 * PAIRS) // 2
    weights = torch.arange(1, slots + 1).float() ** (POWER - 1)
    asked = 2 * PAIRS + 2 * torch.multinomial(weights.expand(n, -1), PAIRS, generator=draw)
    ids.scatter_(1, asked, keys)
    labels = torch.full((n, TOKENS), -100).scatter(1, asked, values)
    places = (1 + 2 * torch.arange(PAIRS)).expand(n, -1)
    return Recall(ids, labels, torch.full((n, TOKENS), -1).scatter(1, asked, places))


@cache
def mqar_toy(seed: int = 0) -> Toy:
    """Train two layers of attention alone; there is no `<s>`."""

    def batch(draw: torch.Generator) -> tuple[Tensor, Tensor, float]:
        made = recall(64, draw)
        return made.ids, made.labels, 0.0

    config = ToyConfig(vocab_size=VOCABULARY, max_position_embeddings=TOKENS)
    return trained(config, batch, seed=seed, target=0.05, most=1500, bos=False)
