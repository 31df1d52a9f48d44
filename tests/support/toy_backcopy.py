"""A toy that has to make a sink: Bigram-Backcopy (Guo et al., arXiv 2410.13835), one layer with one head.

After most tokens the next one is a draw of a bigram, which needs no attention; after a trigger it is the token before
the trigger, which needs the key before. The one head is active on trigger rows, and on all others it has to do nothing:
with softmax it then parks its weight on `<s>`, which it empties; with ReLU it can attend to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from toy_model import ReluToy, ToyConfig, ToyForCausalLM
from toy_training import Toy, trained

WORDS = 32
TOKENS = 48
TRIGGERS = 3
POOL = 16384


@dataclass(frozen=True, eq=False)
class Chain:
    """A bigram over the words 1 … 32: `follows [33, 33]` probabilities of the next token, `triggers` ids."""

    follows: Tensor
    triggers: Tensor

    @classmethod
    def drawn(cls, seed: int) -> Chain:
        """A random bigram, softmax of 2 · N(0, 1); triggers are its most frequent words."""
        draw = torch.Generator().manual_seed(1000 + seed)
        follows = torch.zeros(WORDS + 1, WORDS + 1)
        follows[1:, 1:] = torch.softmax(2 * torch.randn(WORDS, WORDS, generator=draw), -1)
        often = torch.linalg.matrix_power(follows[1:, 1:].double(), 64)[0]
        triggers = 1 + often.topk(TRIGGERS).indices
        often = often.float().index_fill(0, triggers - 1, 0.0)
        follows[0, 1:] = often / often.sum()
        return cls(follows, triggers)

    def is_trigger(self, ids: Tensor) -> Tensor:
        """Which tokens are triggers: bool of the same shape."""
        return torch.isin(ids, self.triggers)

    def sequences(self, n: int, draw: torch.Generator) -> Tensor:
        """Draw ids `[n, tokens]`, `<s>` first and then no trigger."""
        ids = torch.zeros(n, TOKENS, dtype=torch.long)
        for place in range(1, TOKENS):
            last = ids[:, place - 1]
            drawn = torch.multinomial(self.follows[last], 1, generator=draw)[:, 0]
            ids[:, place] = torch.where(self.is_trigger(last), ids[:, max(place - 2, 0)], drawn)
        return ids

    def losses(self, ids: Tensor) -> Tensor:
        """The loss (nats) that the process itself leaves at each row `[n, tokens]`; 0 where none is asked.

        It is the bigram's on rows that are no trigger, and 0 on triggers. `<s>` and the last row are not asked.
        """
        found = torch.zeros(ids.shape)
        last, following = ids[:, 1:-1], ids[:, 2:]
        drawn = -self.follows[last, following].log()
        found[:, 1:-1] = torch.where(self.is_trigger(last), 0.0, drawn)
        return found


@cache
def backcopy_toy(seed: int = 0, *, relu: bool = False) -> Toy:
    """Train one layer; `relu` is the control, whose attention may attend to nothing.

    Softmax: attention alone and a head of 4 dimensions. An MLP behind the head learns to undo whatever content it
    mixes in (a lost sink then costs 0.03 nats at most), and a wide head idles on its own token as well as on `<s>`.
    The control has an MLP: without one it may learn `<s>` as a constant (2 of 6 seeds), whose value is then large.
    """
    chain = Chain.drawn(seed)
    pool = chain.sequences(POOL, torch.Generator().manual_seed(seed))
    least = chain.losses(pool)

    def batch(draw: torch.Generator) -> tuple[Tensor, Tensor, float]:
        rows = torch.randint(POOL, (32,), generator=draw)
        ids = pool[rows]
        labels = ids.roll(-1, 1)
        labels[:, 0] = labels[:, -1] = -100
        return ids, labels, float(least[rows, 1:-1].mean())

    width, inner = (16, 128) if relu else (4, 0)
    config = ToyConfig(
        vocab_size=WORDS + 1,
        num_hidden_layers=1,
        head_dim=width,
        intermediate_size=inner,
        max_position_embeddings=TOKENS,
    )
    kind = ReluToy if relu else ToyForCausalLM
    return trained(config, batch, seed=seed, target=0.01, most=1800, rate=1e-2, over=50, cool=True, kind=kind)
