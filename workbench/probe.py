"""Probes: what a capture keeps of one layer, and the record of a layer they read it from.

A probe is one file in `probes/` that exposes `PROBE`: the table it fills, the statistics it needs from the kernel, and
a function from a `LayerRecord` to columns. Nothing else lists it; two probes for one name raise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.kernel import Attended, Kernel
from sparselens.kernels.selection import Selection
from sparselens.kernels.statistics import kept_mass
from sparselens.workbench.plug_in import plug_ins
from sparselens.workbench.projection import OutputProjection
from sparselens.workbench.prompt import Prompt
from sparselens.workbench.spool import BaseLayer

Columns = dict[str, Any]

Write = Callable[[str, Columns], None]
"""Takes a block of columns of the table of that name (`sparselens.storage.part.Part.add`)."""

SINK_ROWS = 8
"""`sink_mass` counts rows from this position on: earlier rows have hardly another key to read."""


@dataclass(frozen=True)
class Probe:
    """One thing that a capture keeps.

    `statistics` are names of `kernels/statistics.py` that the executed attention must reduce; `rows` turns a layer
    into columns of `table`, or None where it has nothing to say.
    """

    name: str
    table: str
    meaning: str
    statistics: frozenset[str]
    rows: Callable[[LayerRecord], Columns | None]
    default: bool = True


@cache
def probes() -> Mapping[str, Probe]:
    """Return every probe by name, found in `probes/`."""
    from sparselens.workbench import probes as folder

    return plug_ins(folder, "PROBE", attrgetter("name"))


@dataclass(eq=False)
class LayerRecord:
    """One layer of one prompt under one run, while its tensors are in memory. Batch is 1 and is dropped.

    `executed` is what the kernel did; `dense` the counterfactual on the same queries and keys (the executed one itself
    where nothing was dropped); `base` what the base run left of this layer, None in the base run. The last `decoded`
    tokens came one at a time. Per-row tensors are `[heads, tokens]` float32; rows are queries (destinations).
    """

    call: AttentionCall
    selection: Selection
    executed: Attended
    dense: Attended
    projection: OutputProjection
    prompt: Prompt
    kernel: Kernel
    base: BaseLayer | None = None
    run_name: str = ""
    base_name: str = ""
    heads: tuple[int, ...] | None = None
    decoded: int = 0
    reuse: dict[str, Any] = field(default_factory=dict)

    @property
    def layer(self) -> int:
        """Layer index, from 0."""
        return self.call.layer

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self.call.q_len

    @cached_property
    def shown_heads(self) -> np.ndarray:
        """The heads that are recorded (all, unless the capture was restricted)."""
        return np.arange(self.call.heads) if self.heads is None else np.asarray(self.heads)

    @property
    def sparse(self) -> bool:
        """Whether a counterfactual was computed, that is, whether the selection could drop anything."""
        return self.dense is not self.executed

    def statistic(self, name: str, *, dense: bool = False) -> Tensor:
        """Return a statistic of the executed (or the counterfactual) pattern without its batch dimension."""
        source = self.dense if dense else self.executed
        return source.statistics[name][0]

    @cached_property
    def z(self) -> Tensor:
        """What the heads hand to the output projection: `[heads, tokens, head_dim]`."""
        return self.executed.output[0]

    @cached_property
    def visible_counts(self) -> Tensor:
        """Keys that the model allows each row: `[tokens]`."""
        return self.call.allowed.counts(1)[0]

    @cached_property
    def kept_counts(self) -> Tensor:
        """Keys that each row attended to: `[heads, tokens]`."""
        if not self.sparse:
            return self.visible_counts.expand(self.call.heads, -1)
        return self.selection.counts(self.call)[0].expand(self.call.heads, -1)

    @cached_property
    def affected(self) -> Tensor:
        """Rows where something was dropped: bool `[heads, tokens]`."""
        return self.kept_counts < self.visible_counts

    @cached_property
    def kept_mass(self) -> Tensor:
        """Dense mass on the kept keys, on this run's own queries and keys: exp(lse_kept − lse_dense)."""
        if not self.sparse:
            return torch.ones(self.call.heads, self.tokens)
        lse = self.executed.lse
        if self.selection.biased:
            lse = self.kernel.attend(self.call, self.selection.unbiased()).lse
        return kept_mass(self.call, lse, self.dense.lse)[0]

    @cached_property
    def kept_mass_nosink(self) -> Tensor:
        """`kept_mass` with the first token left out of both sides."""
        return without_sink(
            self.kept_mass, self.statistic("sink_mass"), self.statistic("sink_mass", dense=True)
        )

    @cached_property
    def write_norm(self) -> Tensor:
        """‖W_O^h z‖ per row: `[heads, tokens]`."""
        return self.projection.norm(self.z)

    @cached_property
    def write_error(self) -> Tensor | None:
        """‖W_O^h (z_b − z_a)‖ ÷ the base layer's mean ‖attention output‖, per row; None in the base run."""
        if self.base is None:
            return None
        return self.projection.norm(self.z - self.base.z) / self.base.output_norm

    @cached_property
    def row_sets(self) -> list[tuple[str, Tensor]]:
        """The rows that numbers are averaged over: name and bool `[heads, tokens]`.

        `all`; `affected` where something was dropped; `decoded`, those of the tokens that came one at a time;
        `span:NAME`, the span's own positions, except that the rows of
        `span:answer` are those that predict the answer's tokens (start − 1 … stop − 2).
        """
        heads = self.call.heads
        sets = [("all", torch.ones(heads, self.tokens, dtype=torch.bool))]
        if self.sparse:
            sets.append(("affected", self.affected))
        if self.decoded:
            sets.append(("decoded", self.decoded_rows.expand(heads, -1)))
        for name in self.prompt.spans:
            start, stop = span_rows(self.prompt, name)
            mask = torch.zeros(self.tokens, dtype=torch.bool)
            mask[start:stop] = True
            if start < stop:
                sets.append((f"span:{name}", mask.expand(heads, -1)))
        return sets

    @property
    def decoded_rows(self) -> Tensor:
        """The rows of the tokens that came one at a time: bool `[tokens]`."""
        return torch.arange(self.tokens) >= self.tokens - self.decoded

    @cached_property
    def read_counts(self) -> Tensor:
        """Keys that any head of the group read in each decoded row: `[heads, decoded]`."""
        start = self.tokens - self.decoded
        if not self.sparse:
            return self.visible_counts[start:].expand(self.call.heads, -1)
        kept = self.selection.kept(self.call, start, self.tokens)[0].expand(self.call.heads, -1, -1)
        by_group = kept.reshape(self.call.kv_heads, self.call.group, *kept.shape[1:])
        return by_group.any(1).sum(-1).repeat_interleave(self.call.group, 0)

    @cached_property
    def base_call(self) -> AttentionCall:
        """The layer's call with the base run's queries, keys and values (scopes `local_mask`, `local_policy`)."""
        if self.base is None:
            raise ValueError("the base run has no base")
        return self.call.with_tensors(self.base.query[None], self.base.key[None], self.base.value[None])


def span_rows(prompt: Prompt, name: str) -> tuple[int, int]:
    """Return the rows [start, stop) that `span:NAME` stands for."""
    start, stop = prompt.spans[name]
    return (max(start - 1, 0), stop - 1) if name == "answer" else (start, stop)


def without_sink(mass: Tensor, executed_sink: Tensor, dense_sink: Tensor) -> Tensor:
    """Return kept mass without the first token: (mass − kept sink) ÷ (1 − dense sink).

    The kept sink is `executed_sink · mass`; rows whose whole dense mass is the first token count 1.
    """
    rest = 1 - dense_sink
    return ((mass * (1 - executed_sink)) / rest).where(rest > 1e-6, torch.ones_like(rest)).clamp(0.0, 1.0)


def means_over(rows: Tensor, values: Tensor, counted: Tensor | None = None) -> Tensor:
    """Return means of several values over several sets of rows, for each head: `[sets, values, heads]`.

    `rows` is bool `[sets, heads, tokens]`, `values` `[values, heads, tokens]`; `counted` (bool, as `values`) says which
    rows a value has at all. NaN over no rows, and where a counted row is NaN. One product instead of a sum for each.
    """
    counted = torch.ones_like(values, dtype=torch.bool) if counted is None else counted
    among = rows.double().permute(1, 2, 0)
    known = values.masked_fill(~counted | values.isnan(), 0.0)
    total, count, lost = (
        each.double().transpose(0, 1) @ among for each in (known, counted, values.isnan() & counted)
    )
    return (total / count).masked_fill((count == 0) | (lost > 0), torch.nan).float().permute(2, 1, 0)


def mean_over(rows: Tensor, values: Tensor) -> Tensor:
    """Return the mean of `values [heads, tokens]` over `rows` (bool, same shape) for each head; NaN over no rows."""
    return means_over(rows[None], values[None])[0, 0]


def head_names(layer: int, heads: np.ndarray) -> list[str]:
    """Return `L18H6`-style names."""
    return [f"L{layer}H{head}" for head in heads]
