"""How much dense mass policies keep on the base's own queries and keys, and how much any of their shape could.

No run of the model: each layer's weights are computed once and read by every policy. The mass that the best keys of a
row, or random ones, hold follows from the count alone where single keys are chosen; tiles are chosen and summed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparselens.analyses.sweep.base import Base
from sparselens.analyses.sweep.plan import ORACLE, RANDOM, acting_rows
from sparselens.kernels.call import AttentionCall
from sparselens.kernels.parts.block import Blocks
from sparselens.kernels.parts.shape import Chooser, filled
from sparselens.kernels.policies.oracle_mass import log_weights
from sparselens.kernels.policies.oracle_of import Exact, OracleOf
from sparselens.kernels.policies.random_of import Drawn, RandomOf
from sparselens.kernels.policy import Memory, Policy
from sparselens.kernels.selection import Everything, Mixture, Selection, Spliced, Tiles
from sparselens.kernels.walk import chosen
from sparselens.workbench.decode import decoded_tokens
from sparselens.workbench.probe import mean_over, without_sink

SLACK = 1e-5
"""Mass a row that two sums of the same float32 weights may differ by."""
METHOD = "method"
BOUNDED = 1 << 26
"""Weights of a layer (heads × rows × keys) up to which the best pairs of the whole layer are sorted out."""


@torch.no_grad()
def recalls(base: Base, policies: Sequence[Policy], seeds: int) -> list[dict[str, Any]]:
    """Return the recalled mass of every policy and of the references of its shape: see `sweep_metric`.

    `METRIC` of the policy, `METRIC ROLE` of its references; `unit`: what these choose, keys or tiles.
    """
    askers = [_Asker(policy, base, seeds) for policy in policies]
    for layer in base.layers:
        weights = _Weights(layer.call, seeds)
        for asker in askers:
            asker.choose(layer.call, weights)
        for start, stop in layer.call.row_blocks():
            weights.at(start, stop)
            for asker in askers:
                asker.add(layer.call, weights, start, stop)
        for asker in askers:
            asker.end(layer.call, weights)
    return [asker.numbers() for asker in askers]


@dataclass(eq=False)
class _Weights:
    """One layer's dense weights, a block of rows at a time, in three orders: by key, by weight, by random draws."""

    call: AttentionCall
    seeds: int
    tiles: dict[tuple[str, int, int], Tensor] = field(default_factory=dict)
    every: list[Tensor] = field(default_factory=list)

    def at(self, start: int, stop: int) -> None:
        """Go to a block of rows."""
        self.start, self.stop = start, stop
        self.dense = log_weights(self.call, start, stop)[0].exp()
        if self.call.heads * self.call.q_len * self.call.k_len <= BOUNDED:
            self.every.append(self.dense)
        self.first = self.dense[..., 0]
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}

    def held(self, role: str, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mass of a role's keys and that of the first key among them: `counts [heads, rows]` of each row."""
        if role not in self._sums:
            self._sums[role] = self._ordered(role)
        sums, place = self._sums[role]
        return sums.gather(-1, counts[..., None])[..., 0], self.first * (place < counts)

    def _ordered(self, role: str) -> tuple[Tensor, Tensor]:
        """Return cumulative masses `[heads, rows, keys + 1]` in the role's order, and the place of the first key."""
        if role == ORACLE:
            ordered = torch.from_numpy(np.sort(self.dense.cpu().numpy(), -1)).flip(-1)
            place = (self.dense > self.first[..., None]).sum(-1)
        else:
            heads = torch.arange(self.call.heads, device=self.call.device)
            drawn = Drawn(int(role.removeprefix(f"{RANDOM}_")))
            numbers = drawn.keys(self.call, heads, self.start, self.stop)[0]
            order = torch.from_numpy(np.argsort(-numbers.cpu().numpy(), -1)).to(numbers.device)
            ordered = self.dense.gather(-1, order)
            place = (order == 0).int().argmax(-1)
        sums = torch.nn.functional.pad(ordered.cumsum(-1, dtype=torch.float64), (1, 0))
        return sums, place

    def best(self, rows: Tensor, count: int) -> float:
        """Return the largest mass that `count` pairs of the given rows can hold; NaN for a layer of too many."""
        if not self.every:
            return float("nan")
        name = ("best", int(rows.sum()), int(rows.long().argmax()))
        if name not in self.tiles:
            flat = torch.cat(self.every, 1)[:, rows].flatten().cpu().numpy()
            self.tiles[name] = torch.from_numpy(np.sort(flat)).flip(0).cumsum(0, dtype=torch.float64)
        return float(self.tiles[name][count - 1]) if count else 0.0


@dataclass(frozen=True, eq=False)
class _Once(Chooser):
    """A chooser that ranks the tiles of a layer once for all policies of one geometry."""

    role: str
    inner: Chooser
    weights: _Weights

    def keys(self, call: AttentionCall, heads: Tensor, start: int, stop: int) -> Tensor:
        """Return what the chooser says."""
        return self.inner.keys(call, heads, start, stop)

    def tiles(self, blocks: Blocks, heads: Tensor) -> Tensor:
        """Return what the chooser says, of the layer's own heads at once."""
        name = (self.role, blocks.block_q, blocks.block_k)
        if len(heads) < self.weights.call.heads:
            return self.inner.tiles(blocks, heads)
        if name not in self.weights.tiles:
            self.weights.tiles[name] = self.inner.tiles(blocks, heads)
        return self.weights.tiles[name]


@dataclass(eq=False)
class _Asker:
    """One policy, its references, and what they hold."""

    policy: Policy
    base: Base
    seeds: int
    by_count: bool = False
    means: dict[str, list[Tensor]] = field(default_factory=dict)
    bests: list[float] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)
    memories: dict[str, Memory] = field(default_factory=dict)
    violations: dict[str, int] = field(default_factory=lambda: {"oracle": 0, "oracle_mass": 0})

    def __post_init__(self) -> None:
        decode = self.base.stand.decode
        self.acting = acting_rows(self.policy, self.base.prompt, decode)
        self.decoded = decoded_tokens(self.base.prompt, decode) or None
        self.roles = [ORACLE, *(f"{RANDOM}_{seed}" for seed in range(self.seeds))]

    def choose(self, call: AttentionCall, weights: _Weights) -> None:
        """Ask the policy, and its references where the counts alone do not say what they hold."""
        mine = self._ask(METHOD, self.policy, call)
        self.kinds |= set(_kinds(mine))
        self.by_count = self.decoded is None and _by_count(mine)
        self.selections = {METHOD: mine}
        if not self.by_count:
            for role in self.roles:
                self.selections[role] = self._reference(role, mine, call, weights)
        self.counts = mine.counts(call)[0].expand(call.heads, -1)
        tokens = call.q_len
        roles = [METHOD, *self.roles]
        self.mass = {role: torch.zeros(call.heads, tokens, dtype=torch.float64) for role in roles}
        self.sink = {role: torch.zeros(call.heads, tokens, dtype=torch.float64) for role in roles}
        self.first = torch.zeros(call.heads, tokens, dtype=torch.float64)

    def _ask(self, role: str, policy: Policy, call: AttentionCall) -> Selection:
        return chosen(policy, call, self.memories.setdefault(role, Memory()), self.decoded)

    def _reference(self, role: str, mine: Selection, call: AttentionCall, weights: _Weights) -> Selection:
        seed = 0 if role == ORACLE else int(role.removeprefix(f"{RANDOM}_"))
        if self.decoded is not None:  # what a decode step keeps is chosen step by step
            policy = OracleOf(self.policy) if role == ORACLE else RandomOf(self.policy, seed)
            return self._ask(role, policy, call)
        inner = Exact() if role == ORACLE else Drawn(seed)
        return filled(mine, call, torch.arange(call.heads, device=call.device), _Once(role, inner, weights))

    def add(self, call: AttentionCall, weights: _Weights, start: int, stop: int) -> None:
        """Sum what each role holds in some rows."""
        self.first[:, start:stop] = weights.first.cpu()
        for role in self.mass:
            if role in self.selections:
                held = weights.dense * self.selections[role].kept(call, start, stop)[0]
                mass, sink = held.sum(-1), held[..., 0]
            else:
                mass, sink = weights.held(role, self.counts[:, start:stop])
            self.mass[role][:, start:stop] = mass.cpu()
            self.sink[role][:, start:stop] = sink.cpu()

    def end(self, call: AttentionCall, weights: _Weights) -> None:
        """Take means over rows, and compare with the bounds."""
        visible = call.allowed.counts(1)[0].cpu()
        counts = self.counts.cpu()
        affected = counts < visible
        acting = self.acting.expand(call.heads, -1)
        rows = {"": affected, "_all": acting}
        for role in self.mass:
            found = {suffix: mean_over(over, self.mass[role]) for suffix, over in rows.items()}
            rest = without_sink(
                self.mass[role], self.sink[role] / self.mass[role].clamp(min=1e-30), self.first
            )
            found["_nosink"] = mean_over(affected, rest)
            for suffix, values in found.items():
                self.means.setdefault(f"recalled_mass{suffix} {role}", []).append(values)
        mine, oracle = (self.means[f"recalled_mass {role}"][-1] for role in (METHOD, ORACLE))
        self.violations["oracle"] += int((mine > oracle + SLACK).sum())
        n_rows = int(self.acting.sum()) * call.heads
        best = weights.best(self.acting, int(counts[:, self.acting].sum())) / n_rows
        self.bests.append(best)
        mean = float(self.means[f"recalled_mass_all {METHOD}"][-1].mean())
        self.violations["oracle_mass"] += int(mean > best + SLACK)

    def numbers(self) -> dict[str, Any]:
        """Return the means over heads, how often a bound was exceeded, and the unit."""
        found: dict[str, Any] = {"unit": ", ".join(sorted(self.kinds)) or "everything"}
        for name, values in self.means.items():
            heads = torch.stack(values)
            mean = float(heads.nanmean()) if not bool(heads.isnan().all()) else 1.0
            found[name.removesuffix(f" {METHOD}")] = mean
        found["recalled_mass_all oracle_mass"] = sum(self.bests) / len(self.bests)
        return found | {f"above_{name}": float(count) for name, count in self.violations.items()}


def _kinds(selection: Selection) -> Iterator[str]:
    """Yield what a selection is made of, as the units that its references choose."""
    if isinstance(selection, Mixture):
        for _, part in selection.parts:
            yield from _kinds(part)
    elif isinstance(selection, Spliced):
        yield from _kinds(selection.after)
    elif isinstance(selection, Tiles):
        yield f"tiles {selection.block_q}×{selection.block_k}"
    elif not isinstance(selection, Everything):
        yield "keys"


def _by_count(selection: Selection) -> bool:
    """Tell whether a reference of this selection is decided by the number of keys in each row."""
    return not any(kind.startswith("tiles") for kind in _kinds(selection))
