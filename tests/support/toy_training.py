"""Trains a toy until it meets its target, and says so; a toy that does not meet it is no toy."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from toy_model import ToyConfig, ToyForCausalLM, toy_session

Batch = Callable[[torch.Generator], tuple[Tensor, Tensor, float]]
"""Draws ids `[batch, tokens]`, labels of the same shape (what each row is to predict, -100 where nothing), and the
least loss that these labels allow (nats a label): 0 where the past determines them."""


@dataclass(frozen=True, eq=False)
class Toy:
    """A trained toy: its session, and what the training came to."""

    session: Any
    seed: int
    steps: int
    seconds: float
    loss: float

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.steps} steps, {self.seconds:.0f} s, {self.loss:.4f} above the least loss"


def trained(
    config: ToyConfig,
    batch: Batch,
    *,
    seed: int,
    target: float,
    most: int,
    rate: float = 2e-3,
    decay: float = 0.01,
    over: int = 20,
    cool: bool = False,
    kind: type[ToyForCausalLM] = ToyForCausalLM,
    bos: bool = True,
) -> Toy:
    """Train with AdamW on one thread until the loss of `over` steps is less than `target` nats above the least one.

    `cool`: the rate falls to 0 over the `most` steps, in a straight line.

    Raises `RuntimeError` where `most` steps do not suffice: what stalls on a plateau has not learned its task.
    """
    started = time.process_time()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a loaded machine a second thread makes these sizes many times slower
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = kind(config).train()
        optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
        steps, loss = _descend(model, optimiser, batch, seed, target, most, over, cool)
    finally:
        torch.set_num_threads(threads)
    return Toy(toy_session(model, bos=bos), seed, steps, time.process_time() - started, loss)


def _descend(
    model: ToyForCausalLM,
    optimiser: torch.optim.Optimizer,
    batch: Batch,
    seed: int,
    target: float,
    most: int,
    over: int,
    cool: bool,
) -> tuple[int, float]:
    """Take steps until the target is met; the number of steps and the loss."""
    draw = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    recent = float("inf")
    rate = optimiser.param_groups[0]["lr"]
    for step in range(1, most + 1):
        if cool:
            optimiser.param_groups[0]["lr"] = rate * (1 - (step - 1) / most)
        ids, labels, least = batch(draw)
        rows = labels >= 0
        logits = model.lm_head(model.model(ids).last_hidden_state[rows])
        loss = torch.nn.functional.cross_entropy(logits, labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()) - least)
        recent = sum(losses[-over:]) / len(losses[-over:])
        if step >= over and recent < target:
            return step, recent
    raise RuntimeError(f"seed {seed}: loss {recent:.3f} above the least after {most} steps, not {target}")
