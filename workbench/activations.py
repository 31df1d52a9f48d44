"""Activations of one site over a stream of text, in shuffled batches: what an SAE is trained on.

Windows are run in blocks. The vectors of a block are shuffled and dealt into batches, so that a batch mixes texts;
the order depends on seed and block number alone, and training can go on at any block. The first tokens of a window
are left out: on a model whose heads rest on the first token its vectors are outliers that no text has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from sparselens.workbench.corpus import documents, windows
from sparselens.workbench.session import Session
from sparselens.workbench.site import Site


@dataclass(frozen=True)
class Stream:
    """What is streamed: `context` tokens a window, `skip` of them left out at the start, `block` windows at once.

    `batch` vectors make one batch; what is over at the end of a block is not used.
    """

    site: Site
    text: Any = "python"
    context: int = 256
    skip: int = 1
    block: int = 65
    batch: int = 512
    together: int = 8
    seed: int = 0

    @property
    def batches_a_block(self) -> int:
        """How many batches a block makes; raises `ValueError` where it makes none."""
        count = self.block * (self.context - self.skip) // self.batch
        if count < 1:
            raise ValueError(f"{self.block} windows of {self.context} tokens make no batch of {self.batch}")
        return count

    def batches(self, session: Session, start: int = 0) -> Iterator[Tensor]:
        """Yield batches `[batch, width]`, float32, from block `start` on, without end.

        Raises `ValueError` where the context is longer than the model's.
        """
        if self.context > session.max_tokens:
            raise ValueError(f"the model takes {session.max_tokens} tokens, the context is {self.context}")
        stream = windows(documents(self.text), session.tokenizer, self.context, self.seed)
        for _ in islice(stream, start * self.block):
            pass
        number = start
        while True:
            vectors = self.vectors(session, list(islice(stream, self.block)))
            mixer = torch.Generator().manual_seed(hash_of(self.seed, number))
            order = torch.randperm(len(vectors), generator=mixer)
            for at in range(self.batches_a_block):
                yield vectors[order[at * self.batch : (at + 1) * self.batch]]
            number += 1

    @torch.no_grad()
    def vectors(self, session: Session, texts: list[list[int]]) -> Tensor:
        """Return the site's vectors of some windows, their first `skip` tokens left out: `[n, width]` float32.

        The model's own dense attention runs, and only the layers up to the site.
        """
        found: list[Tensor] = []

        def take(vectors: Tensor) -> None:
            found.append(vectors[:, self.skip :].flatten(0, 1).float().cpu())
            raise _Reached

        decoder = session.model.get_decoder()
        with self.site.edited(session, take):
            for at in range(0, len(texts), self.together):
                ids = torch.tensor(texts[at : at + self.together], device=session.device)
                try:
                    decoder(input_ids=ids, use_cache=False)
                except _Reached:
                    continue
        return torch.cat(found)


class _Reached(Exception):  # noqa: N818  (not an error: the layers after the site are not needed)
    """The forward pass has come to the site."""


def hash_of(seed: int, number: int) -> int:
    """Return a seed of its own for each block."""
    return (seed * 1_000_003 + number * 7_919 + 12_345) % (1 << 62)
