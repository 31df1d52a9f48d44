"""Double Sparsity: keys ranked by a dot product over a few channels that a calibration found heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.parts.assemble import bits_of
from sparselens.kernels.parts.block import repeated
from sparselens.kernels.parts.budget import top_k
from sparselens.kernels.plan import Plan, read_plan
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Everything, Selection


@dataclass(frozen=True)
class DoubleSparsity(Policy):
    """Keeps, per query and head, the `heavy` keys with the largest q · k over `head_dim // group_factor` channels.

    The channels of each head are the first of `channels[layer][head]` in `plan`. `label_bits`: queries and keys are
    rounded to so many bits between their own smallest and largest channel first; 0 leaves them as they are. The
    query's own key is forced and counts. The first `dense_layers` layers keep everything.
    """

    plan: str = ""
    heavy: int = 512
    group_factor: int = 4
    label_bits: int = 4
    dense_layers: int = 2
    phase: str = field(default="decode", kw_only=True)

    name: ClassVar[str] = "double_sparsity"
    budget: ClassVar[tuple[str, ...]] = ("heavy",)
    source: ClassVar[str] = "Double Sparsity, arXiv:2408.07092; andy-yang-1/DoubleSparse b0575e6"
    card: ClassVar[str] = (
        "Channels are found once for each model (`sparselens calibrate double_sparsity`), on 256 texts of 512 tokens by"
        " the authors; their script keeps the last text alone for its qk statistic. The score is divided by the root of"
        " the number of channels, which changes no order. Their evaluation applies it to every row (phase=both: it is"
        " row-local), rounds queries too, and forces no key; here the own key is forced and counts. Layers 0 and 1 are"
        " dense in their scripts."
    )
    short_input: ClassVar[str] = "dense up to `heavy` keys"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("heavy", "group_factor"):
            self.require(getattr(self, name) >= 1, f"{name} is 1 or more, not {getattr(self, name)}")
        self.require(0 <= self.label_bits <= 16, f"label_bits is 0 to 16, not {self.label_bits}")
        self.require(self.dense_layers >= 0, f"dense_layers is 0 or more, not {self.dense_layers}")

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plan with the channels; raises `ValueError` where none is named."""
        self.require(
            bool(self.plan),
            "it needs channels: `sparselens calibrate double_sparsity --model M --out FILE`, then plan=FILE",
        )
        return (read_plan(self.plan, self.name),)

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return a mask; raises `ValueError` where the plan has no channels for this layer's heads."""
        del memory
        if call.layer < self.dense_layers:
            return Everything()
        channels = self._channels(call)
        return bits_of(call, lambda one: self._best(one, channels))

    def _best(self, call: AttentionCall, channels: Tensor) -> Tensor:
        """Return what each query keeps: bool `[heads, q_len, k_len]`."""
        kept = []
        query = self._labels(call.query[0], channels)
        key = self._labels(repeated(call.key[0], call.group), channels).transpose(1, 2)
        for start, stop in call.row_blocks():
            own = call.query_positions[0, start:stop, None] == call.key_positions[0]
            scores = query[:, start:stop] @ key / channels.shape[1] ** 0.5
            kept.append(
                top_k(scores.masked_fill(own, torch.inf), self.heavy, call.allowed.rows(start, stop)[0])
            )
        return torch.cat(kept, 1)

    def _labels(self, tensor: Tensor, channels: Tensor) -> Tensor:
        """Return the heavy channels of `[heads, n, head_dim]`, rounded: `[heads, n, channels]`."""
        label = tensor.gather(-1, channels[:, None].expand(-1, tensor.shape[1], -1)).to(torch.float32)
        return rounded(label, self.label_bits) if self.label_bits else label

    def _channels(self, call: AttentionCall) -> Tensor:
        """Return the channels of each head of a layer: int64 `[heads, head_dim // group_factor]`."""
        count = call.head_dim // self.group_factor
        self.require(count >= 1, f"group_factor {self.group_factor} leaves none of {call.head_dim} channels")
        (plan,) = self.plans
        table = _table(plan)
        self.require(
            call.layer < len(table) and table[call.layer].shape == (call.heads, call.head_dim),
            f"{self.plan} does not rank the {call.head_dim} channels of {call.heads} heads in layer {call.layer}",
        )
        return table[call.layer][:, :count].to(call.device)


def rounded(label: Tensor, bits: int) -> Tensor:
    """Return `label` with its last axis rounded to `2 ** bits` values from its smallest to its largest."""
    low, high = label.amin(-1, keepdim=True), label.amax(-1, keepdim=True)
    step = (high - low) / (2**bits - 1)
    step = step.where(step > 0, torch.ones_like(step))
    found: Tensor = ((label - low) / step).round() * step + low
    return found


@lru_cache(maxsize=8)
def _table(plan: Plan) -> list[Tensor]:
    """Return the channels by layer, heaviest first; raises `ValueError` where the plan has none."""
    found: Any = plan.content.get("channels")
    try:
        return [torch.tensor(layer, dtype=torch.int64, device="cpu") for layer in found]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the plan for double_sparsity has no list of channels for each head: {error}"
        ) from error


POLICY = DoubleSparsity
