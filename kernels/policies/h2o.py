"""H2O: a cache of heavy hitters, the keys with the most attention so far, and recent keys; the rest is evicted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.parts.assemble import bits_of
from sparselens.kernels.parts.budget import top_k
from sparselens.kernels.parts.share import SHARING, shared
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Selection

FORMS = ("cache", "global")
_CACHE = "h2o.cache"


class Cache(NamedTuple):
    """One sequence's cache by absolute position: which keys are `alive`, and the attention they received.

    Both `[heads, positions]`: bool, and float.
    """

    alive: Tensor
    received: Tensor


@dataclass(frozen=True)
class H2O(Policy):
    """Keeps the `heavy` keys with the largest sum of attention so far and the `recent` newest; the query itself always.

    `form` `cache`: after each step (the prefill is one) every other key leaves the cache for good, with its sum; a
    query reads `heavy + recent + 1` keys. `share`: how the heads of a group add up their sums to one cache (`sum`,
    `mean`, `max`), or `head`, a cache each. With `phase=both` a prompt is evicted row by row as if decoded. `form`
    `global`: a mask for a prompt (`phase=prefill`): the `heavy` columns with the largest sums over *all* rows, and the
    band `q - k <= recent`.
    """

    heavy: int = 1024
    recent: int = 1024
    share: str = "sum"
    form: str = "cache"
    phase: str = field(default="decode", kw_only=True)

    name: ClassVar[str] = "h2o"
    budget: ClassVar[tuple[str, ...]] = ("heavy", "recent")
    source: ClassVar[str] = "H2O, arXiv:2306.14048; FMInference/H2O ac75c2a"
    card: ClassVar[str] = (
        "The cache form starts from the sums over the whole, dense prefill. The published accuracies are of the mask"
        " form, whose sums look at later rows (form=global, look-ahead), with heavy and recent each a tenth of the"
        " tokens. Sums favour old keys; the recent ones answer for the new. The code assumes as many key-value heads as"
        " query heads; `share` says how a group shares a cache. Its classes default to heavy 4, recent 512, a script to"
        " 1024 each. Evictions are in the table `removals`."
    )
    short_input: ClassVar[str] = "nothing is evicted up to heavy + recent keys"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("heavy", "recent"):
            self.require(getattr(self, name) >= 0, f"{name} is 0 or more, not {getattr(self, name)}")
        self.require(self.share in SHARING, f"share is one of {', '.join(SHARING)}, not {self.share!r}")
        self.require(self.form in FORMS, f"form is one of {', '.join(FORMS)}, not {self.form!r}")
        self.require(
            self.form == "cache" or self.phase == "prefill",
            "form=global is a mask for whole prompts: add phase=prefill",
        )

    @property
    def lookahead(self) -> bool:  # type: ignore[override]
        """The mask form sums over later rows too."""
        return self.form == "global"

    def watch(self, call: AttentionCall, memory: Memory) -> None:
        """Add up what the keys receive while everything is kept."""
        if self.form == "global":
            return
        caches = dict(memory.get(call.layer, _CACHE, {}))
        for row, _, _, one in call.sequences():
            caches[row] = _seen(one, caches.get(row))
        memory.set(call.layer, _CACHE, caches)

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return a mask; the cache form leaves each sequence's cache in `memory`."""
        if self.form == "global":
            return bits_of(call, self._columns)
        caches = dict(memory.get(call.layer, _CACHE, {}))
        rows = iter([row for row, _, _, _ in call.sequences()])

        def step(one: AttentionCall) -> Tensor:
            row = next(rows)
            kept, caches[row] = self._walk(one, caches.get(row), memory if call.batch == 1 else None)
            return kept

        selection = bits_of(call, step)
        memory.set(call.layer, _CACHE, caches)
        return selection

    def _columns(self, call: AttentionCall) -> Tensor:
        """Return the mask form: bool `[heads, q_len, k_len]`."""
        sums = shared(_seen(call, None).received[:, call.key_positions[0]], call.group, self.share)
        gap = call.query_positions[0, :, None] - call.key_positions[0]
        return top_k(sums, self.heavy)[:, None] | (gap <= self.recent)

    def _walk(self, call: AttentionCall, cache: Cache | None, memory: Memory | None) -> tuple[Tensor, Cache]:
        """Return what each query of a sequence reads, bool `[heads, q_len, k_len]`, and the cache after the last."""
        rows = []
        for at in range(call.q_len):
            here = torch.tensor([at], device=call.device)
            one = (
                call
                if call.q_len == 1
                else call.sequence(0, here, torch.arange(call.k_len, device=call.device))
            )
            kept, cache = self._step(one, cache, memory)
            rows.append(kept)
        if cache is None:
            raise ValueError("a call has at least one query")
        return torch.stack(rows, 1), cache

    def _step(self, call: AttentionCall, cache: Cache | None, memory: Memory | None) -> tuple[Tensor, Cache]:
        """Return what one query reads, bool `[heads, k_len]`, and the cache with what it gave to each key.

        What the step before was to evict leaves first: nobody has read it since.
        """
        position, now = call.key_positions[0], int(call.query_positions[0, 0])
        size = int(position[-1]) + 1
        cache = _wide(cache, call, size)
        seen = torch.zeros(size, dtype=torch.bool, device=call.device)
        seen[position] = call.allowed.rows(0, 1)[0, 0, 0]
        seen[now] = False
        alive = self._after_eviction(cache, cache.alive & seen, call.group)
        if memory is not None:
            _log(call, memory, cache.alive & seen & ~alive, alive)
        alive[:, now] = True
        kept = alive[:, position]
        scores = call.scores(0, 1)[0, :, 0].masked_fill(~kept, -torch.inf)
        received = cache.received.clone()
        received[:, position] += torch.softmax(scores, -1).to(received.dtype)
        return kept, Cache(alive, received * alive)

    def _after_eviction(self, cache: Cache, there: Tensor, group: int) -> Tensor:
        """Return which of the keys `there` stay: the newest `recent`, and the heaviest among the others."""
        newest = there.flip(-1).cumsum(-1).flip(-1) <= self.recent
        heavy = top_k(shared(cache.received, group, self.share), self.heavy, there & ~newest)
        return there & (newest | heavy)


def _seen(call: AttentionCall, cache: Cache | None) -> Cache:
    """Return the cache with what the keys receive of all rows of a dense call."""
    size = int(call.key_positions[0, -1]) + 1
    cache = _wide(cache, call, size)
    alive, received = cache.alive.clone(), cache.received.clone()
    alive[:, call.key_positions[0]] = True
    for start, stop in call.row_blocks():
        weights = torch.softmax(call.scores(start, stop), -1)[0].sum(1)
        received[:, call.key_positions[0]] += weights.to(received.dtype)
    return Cache(alive, received)


def _wide(cache: Cache | None, call: AttentionCall, size: int) -> Cache:
    """Return the cache with room for `size` positions; an empty one for None."""
    if cache is None:
        empty = torch.zeros(call.heads, size, device=call.device)
        return Cache(empty.bool(), empty.to(call.accumulate))
    more = (0, size - cache.alive.shape[1])
    return Cache(pad(cache.alive, more), pad(cache.received, more))


def _log(call: AttentionCall, memory: Memory, gone: Tensor, alive: Tensor) -> None:
    """Log the keys that left with the step before, once no head of their group holds them."""
    group = call.group
    gone = gone.view(call.kv_heads, group, -1).any(1) & ~alive.view(call.kv_heads, group, -1).any(1)
    for head, left in enumerate(gone):
        memory.remove(call.layer, head, max(call.step - 1, 0), left.nonzero()[:, 0])


POLICY = H2O
