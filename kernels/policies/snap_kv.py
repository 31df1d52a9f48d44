"""SnapKV: after the prefill each key-value head keeps the keys that the prompt's end reads, and evicts the rest."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.parts.assemble import bits_of
from sparselens.kernels.parts.budget import top_k
from sparselens.kernels.parts.probe import probed
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Everything, Selection

_KEPT, _LOGGED = "snap_kv.kept", "snap_kv.logged"


@dataclass(frozen=True)
class SnapKV(Policy):
    """Keeps `capacity` keys of the prompt in each key-value head, and every key decoded since.

    A key scores the mean over the group's heads of its weights, summed over the last `window` queries of the prompt,
    then averaged over the `kernel` keys around it (keys beyond the ends count 0). The last `local` and the first
    `prefix` keys are forced and count. What is not kept leaves the cache after the prefill, for good.
    """

    capacity: int = 1024
    window: int = 256
    kernel: int = 21
    local: int = 128
    prefix: int = 4
    phase: str = field(default="decode", kw_only=True)

    name: ClassVar[str] = "snap_kv"
    budget: ClassVar[tuple[str, ...]] = ("capacity",)
    source: ClassVar[str] = (
        "SnapKV, arXiv:2404.14469; as in The Sparse Frontier, PiotrNawrot/sparse-frontier 31d86c1"
    )
    evidence: ClassVar[str] = "copies"
    card: ClassVar[str] = (
        "The prefill is dense; decode reads what was kept and what was generated. One choice for a whole prompt, made"
        " from its end, so it suits a question that stands there. Fields and defaults are those of The Sparse Frontier"
        " (window 256, average pooling over 21 keys, local 128, prefix 4); the paper's observation window is 16 to 64"
        " and forces itself. Evictions are in the table `removals`."
    )
    short_input: ClassVar[str] = "dense for prompts of at most `capacity` keys"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("capacity", "window", "kernel", "local"):
            self.require(getattr(self, name) >= 1, f"{name} is 1 or more, not {getattr(self, name)}")
        self.require(self.prefix >= 0, f"prefix is 0 or more, not {self.prefix}")
        self.require(self.kernel % 2 == 1, f"kernel is odd, so that it has a middle; not {self.kernel}")
        self.require(
            self.capacity >= self.local + self.prefix,
            f"capacity {self.capacity} does not hold local {self.local} and prefix {self.prefix}",
        )
        self.require(self.phase != "prefill", "it acts on decoded tokens: phase is decode or both")

    def wider(self, factor: float) -> SnapKV:
        """Return the policy with another capacity, which always holds what is forced."""
        return replace(self, capacity=max(round(self.capacity * factor), self.local + self.prefix))

    def watch(self, call: AttentionCall, memory: Memory) -> None:
        """Choose what stays, from the newest part of the prompt; below `dense_below` everything does."""
        if call.phase == "decode" or call.k_len < self.dense_below:
            return
        kept = {row: self._staying(one) for row, _, _, one in call.sequences()}
        memory.set(call.layer, _KEPT, kept)
        memory.set(call.layer, _LOGGED, False)

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return everything for a prompt, what stayed and what came later for a decoded token."""
        if call.phase == "prefill":
            self.watch(call, memory)
            return Everything()
        kept: dict[int, Tensor] = memory.get(call.layer, _KEPT, {})
        if all(bool(stays.all()) for stays in kept.values()):
            return Everything()
        self._log(call, memory, kept)
        rows = iter([kept[row] for row, _, _, _ in call.sequences()])
        return bits_of(call, lambda one: _present(one, next(rows)))

    def _staying(self, call: AttentionCall) -> Tensor:
        """Return which positions of the prompt stay: bool `[kv_heads, last position + 1]`; absent ones are False."""
        weights = probed(call, min(self.window, call.q_len))
        by_key = weights.unflatten(0, (call.kv_heads, call.group)).mean(1).sum(1)  # type: ignore[no-untyped-call]
        pooled = avg_pool1d(by_key[:, None], self.kernel, stride=1, padding=self.kernel // 2)[:, 0]
        pooled[:, -self.local :] = torch.inf
        pooled[:, call.key_positions[0] < self.prefix] = torch.inf
        stays = torch.zeros(
            call.kv_heads, int(call.key_positions[0, -1]) + 1, dtype=torch.bool, device=call.device
        )
        stays[:, call.key_positions[0]] = top_k(pooled, self.capacity)
        return stays

    def _log(self, call: AttentionCall, memory: Memory, kept: dict[int, Tensor]) -> None:
        """Log once what left after the prefill; a batch of several texts has no log."""
        if memory.get(call.layer, _LOGGED) or len(kept) > 1:
            return
        for head, stays in enumerate(kept[0]):
            memory.remove(call.layer, head, 0, (~stays).nonzero()[:, 0])
        memory.set(call.layer, _LOGGED, True)


def _present(call: AttentionCall, stays: Tensor) -> Tensor:
    """Return the keys of one decoded token: bool `[heads, 1, k_len]`."""
    position = call.key_positions[0]
    later = position >= stays.shape[1]
    kept = stays[:, position.clamp(max=stays.shape[1] - 1)] | later
    return kept.repeat_interleave(call.group, 0)[:, None]


POLICY = SnapKV
