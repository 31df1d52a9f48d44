"""DuoAttention: key-value heads that must see far stay dense, the others keep sink tokens and a window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.plan import Plan, read_plan
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Band, Everything, Mixture, Selection

NOISE = 1e-6  # breaks ties of gates; drawn from a fixed seed


@dataclass(frozen=True)
class DuoAttention(Policy):
    """Keeps everything in retrieval heads, and the first `sink` and last `recent` positions in streaming heads.

    A flag each key-value head, from the gates in `plan`: the lowest `streaming` of all heads of the model stream, or,
    given `threshold` (then `streaming` does not matter), those below it.
    """

    plan: str = ""
    streaming: float = 0.5
    threshold: float | None = None
    sink: int = 64
    recent: int = 256

    name: ClassVar[str] = "duo_attention"
    budget: ClassVar[tuple[str, ...]] = ("recent",)
    source: ClassVar[str] = "DuoAttention, arXiv:2410.10819; mit-han-lab/duo-attention, fe93c31"
    evidence: ClassVar[str] = "code"
    short_input: ClassVar[str] = "none; a streaming head is dense up to sink + recent keys"
    card: ClassVar[str] = (
        "Static. The gates are optimised with frozen weights and belong to one model (`sparselens calibrate "
        "duo_attention`). The authors optimise at sink 128, recent 256 and 1,000 to 32,000 tokens, and deploy at sink "
        "64, recent 256. Their code prefills a prompt densely in all heads and cuts the streaming caches afterwards: "
        "phase=decode is that; both phases are the paper's. The gates are those of passkey recital: a streaming head "
        "may matter for something else."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 <= self.streaming <= 1, f"streaming is a share from 0 to 1, not {self.streaming}")
        self.require(self.sink >= 0, f"sink is 0 or more, not {self.sink}")
        self.require(self.recent >= 1, f"recent is 1 or more, not {self.recent}")

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plan with the gates; raises `ValueError` where none is named."""
        self.require(
            bool(self.plan),
            "it needs gates: `sparselens calibrate duo_attention --model M --out FILE`, then plan=FILE",
        )
        return (read_plan(self.plan, self.name),)

    @property
    def reads_tensors(self) -> bool:
        """Positions and the plan decide."""
        return False

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return dense and streaming heads of the layer; raises `ValueError` where the plan is for another model."""
        del memory
        (plan,) = self.plans
        flags = retrieval_heads(plan, self.streaming, self.threshold)
        shape = (plan.n_heads, plan.n_kv_heads)
        self.require(
            call.layer < len(flags) and shape == (call.heads, call.kv_heads),
            f"{self.plan} has gates of {len(flags)} layers of {shape[0]} heads, {shape[1]} key-value heads; "
            f"layer {call.layer} of this model has {call.heads}, {call.kv_heads}",
        )
        dense = flags[call.layer]
        if all(dense):
            return Everything()
        band = Band(self.sink, self.recent)
        if not any(dense):
            return band
        full = tuple(head for head in range(call.heads) if dense[head // call.group])
        rest = tuple(head for head in range(call.heads) if not dense[head // call.group])
        return Mixture([(rest, band), (full, Everything())])


@lru_cache(maxsize=32)
def retrieval_heads(plan: Plan, streaming: float, threshold: float | None) -> tuple[tuple[bool, ...], ...]:
    """Return which key-value heads of each layer stay dense.

    As the authors binarise: gates get noise below 1e-6, so that ties fall at random (here the same way each time), and
    a head is dense from the quantile `streaming` of all gates on; at 0 all are, at 1 none is. In their function a
    threshold without a share is an error; here it is that of the gates without noise. Raises `ValueError` where the
    plan's content is not one gate for each key-value head.
    """
    gates = _gates(plan)
    if threshold is not None:
        dense = gates >= threshold
    else:
        draw = torch.Generator("cpu").manual_seed(0)
        noisy = gates + NOISE * torch.rand(gates.shape, generator=draw, dtype=gates.dtype, device="cpu")
        count = 0 if streaming <= 0 else gates.numel() if streaming >= 1 else _below(streaming, gates.numel())
        dense = torch.ones(gates.numel(), dtype=torch.bool, device="cpu")
        dense[noisy.flatten().argsort()[:count]] = False
        dense = dense.view_as(gates)
    return tuple(tuple(bool(flag) for flag in row) for row in dense.tolist())


def _below(share: float, number: int) -> int:
    """Return how many of `number` different values lie below their quantile `share` (linear between two values)."""
    return math.ceil(round(share * (number - 1), 9))


def _gates(plan: Plan) -> torch.Tensor:
    found = plan.content.get("gates")
    rows = found if isinstance(found, Sequence) else ()
    sound = len(rows) == plan.n_layers and all(
        isinstance(row, Sequence)
        and len(row) == plan.n_kv_heads
        and all(isinstance(x, int | float) for x in row)
        for row in rows
    )
    if not sound:
        raise ValueError(
            f"{plan.method}: a plan has `gates`, {plan.n_layers} rows of {plan.n_kv_heads} numbers"
        )
    return torch.tensor(rows, dtype=torch.float64, device="cpu").clamp(0, 1)


POLICY = DuoAttention
