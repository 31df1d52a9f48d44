"""The SAE of the codes: SAELens' standard one, on the outputs of all heads of a few prompts; its argmax is the code.

Vectors are encoded as they are, features begin at unit length: as in the authors' code, so that their penalty means the
same. Scaled to a mean norm of √d_model the same penalty is weaker, and codes then find less (docs/codes.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparselens.analyses.codes.plan import Codes


@dataclass(frozen=True, eq=False)
class Dictionary:
    """A trained SAE.

    `examples`: places of the prompts it saw. `explained`: share of the variance of all others that it explains, `l0`
    their active features.
    """

    inner: Any
    examples: tuple[int, ...]
    explained: float = float("nan")
    l0: float = float("nan")

    @torch.no_grad()
    def codes(self, vectors: Tensor) -> Tensor:
        """Return the number of the strongest feature `[prompts, heads]`; `features` where none is active."""
        found = []
        for each in vectors:
            acts = self.inner.encode(each)
            best = acts.max(-1)
            found.append(torch.where(best.values > 0, best.indices, acts.shape[-1]))
        return torch.stack(found)


def trained(vectors: Tensor, chosen: Codes, trial: int) -> Dictionary:
    """Train on the heads of `examples` prompts of `vectors [prompts, heads, d_model]`, drawn by seed and trial."""
    draw = torch.Generator().manual_seed(chosen.seed * 1_000 + trial)
    examples = torch.randperm(len(vectors), generator=draw)[: chosen.examples]
    data = vectors[examples].flatten(0, 1)
    if not data.any():
        raise ValueError("codes: no head writes anything on the examples")
    inner = _fitted(data, chosen, trial, _batches(data, chosen.batch, draw))
    seen = tuple(sorted(examples.tolist()))
    return Dictionary(inner, seen, *_quality(inner, vectors, seen))


def _fitted(data: Tensor, chosen: Codes, trial: int, batches: Iterator[Tensor]) -> Any:
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.registry import get_sae_training_class
    from sae_lens.training.sae_trainer import SAETrainer

    made, config = get_sae_training_class("standard")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(chosen.seed * 1_000 + trial)
        width = data.shape[-1]
        penalty = chosen.sparsity * width  # SAELens sums the squared error over dimensions
        inner = made(config(d_in=width, d_sae=chosen.features, l1_coefficient=penalty, decoder_init_norm=1.0))
        size = min(chosen.batch, len(data))
        trainer: Any = SAETrainer(
            SAETrainerConfig(
                total_training_samples=chosen.steps * size,
                train_batch_size_samples=size,
                lr=1e-3,
                lr_end=1e-3,
                lr_warm_up_steps=0,
                lr_decay_steps=0,
                device="cpu",
                logger=LoggingConfig(log_to_wandb=False),
            ),
            inner,
            iter(()),
        )
        for _ in range(chosen.steps):
            trainer.step(next(batches))
            trainer.n_training_steps += 1
    return inner.eval()


def _batches(data: Tensor, size: int, draw: torch.Generator) -> Iterator[Tensor]:
    """Yield batches without end, every vector once in each round."""
    size = min(size, len(data))
    while True:
        order = torch.randperm(len(data), generator=draw)
        for start in range(0, len(data) - size + 1, size):
            yield data[order[start : start + size]]


@torch.no_grad()
def _quality(inner: Any, vectors: Tensor, seen: tuple[int, ...]) -> tuple[float, float]:
    """Return explained variance and active features a vector over the prompts that were not trained on."""
    others = [place for place in range(len(vectors)) if place not in set(seen)]
    middle = vectors[others].mean((0, 1))
    error = variance = active = 0.0
    for place in others:
        data = vectors[place]
        acts = inner.encode(data)
        error += float((data - inner.decode(acts)).square().sum())
        variance += float((data - middle).square().sum())
        active += float((acts > 0).sum())
    return 1 - error / variance, active / (len(others) * vectors.shape[1])
