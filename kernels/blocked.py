"""Attention on the CPU that computes little more than what a selection keeps, in plain PyTorch.

A call is cut into strips of queries against whole tiles of `block` keys or against single keys that are gathered,
whichever costs less (`tile_plan`); strips are computed in batches (`tile_attention`), and statistics are reduced
from their weights on the spot (`tile_statistics`). Token-exact: what is computed and not kept is masked. Where
everything is kept and no statistic is wanted, PyTorch's own flash attention runs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.kernel import Attended, Kernel, refuse_bias
from sparselens.kernels.selection import Everything, Selection
from sparselens.kernels.statistics import NOTHING, Pools, Want, empty_statistics
from sparselens.kernels.tile_attention import Tensors, attend_batch
from sparselens.kernels.tile_plan import Plan, plan_for
from sparselens.kernels.tile_statistics import TileStatistics


@dataclass(frozen=True)
class Blocked:
    """Computes kept tiles and keys only. Any length, padding, window, softcap, sink logits; CPU; not float64."""

    block: int = 128
    name: str = "blocked"

    def attend(self, call: AttentionCall, selection: Selection, want: Want = NOTHING) -> Attended:
        """Attend over kept and allowed keys; see `Attended` for shapes.

        Raises `ValueError` for tensors that are not on the CPU, or float64 (the reference keeps its
        precision).
        """
        refuse_bias(selection, self.name)
        if call.query.device.type != "cpu":
            raise ValueError(
                f"kernel 'blocked' runs on the CPU, not on {call.query.device}; name another kernel"
            )
        if call.query.dtype == torch.float64:
            raise ValueError("kernel 'blocked' computes in float32; use 'reference' for float64")
        if isinstance(selection, Everything) and not want.names and _is_flash(call):
            return _flash(call)
        pools = Pools.of(call, want.cells) if want.names else Pools(1, 1)
        sequences = list(call.sequences())
        if len(sequences) == 1 and sequences[0][3] is call:
            return self._sequence(call, selection, want, pools)
        output = torch.zeros(*call.query.shape[:3], call.value.shape[-1], dtype=call.query.dtype)
        lse = torch.full(call.query.shape[:3], float("-inf"))
        whole = Attended(output, lse, empty_statistics(call, want, pools))
        for row, queries, keys, one in sequences:
            part = selection.sequence(row, queries, keys)
            _paste(
                row, queries, keys, self._sequence(one, part, _cut(want, row, queries, keys), pools), whole
            )
        return whole

    def plan(self, call: AttentionCall, selection: Selection) -> Plan:
        """Return the plan of a call of one sequence without padding, for timing and for `attend_plan`."""
        return plan_for(selection, call, self.block)

    def attend_plan(
        self, call: AttentionCall, plan: Plan, want: Want = NOTHING, pools: Pools | None = None
    ) -> Attended:
        """Attend as planned, on a call of one sequence without padding."""
        grid = plan.grid
        collector = None
        if want.names:
            collector = TileStatistics.of(call, want, grid, pools or Pools.of(call, want.cells))
        tensors = Tensors.of(call, plan, keep_scores="entropy" in want.names)
        for batch in plan.batches:
            soft = attend_batch(batch, plan, tensors)
            if collector is not None:
                collector.add(soft)
        rows, lse = tensors.finish()
        output, lse = rows.view(1, grid.heads, grid.q_len, -1), lse.view(1, grid.heads, grid.q_len)
        statistics = {} if collector is None else collector.finish(call)
        return Attended(output.to(call.query.dtype), lse, statistics)

    def _sequence(self, call: AttentionCall, selection: Selection, want: Want, pools: Pools) -> Attended:
        if isinstance(selection, Everything) and not want.names and _is_flash(call):
            return _flash(call)
        return self.attend_plan(call, self.plan(call, selection), want, pools)


def _is_flash(call: AttentionCall) -> bool:
    """Tell whether PyTorch's flash attention computes exactly this call under `Everything`."""
    mask = call.allowed
    if call.softcap is not None or not mask.is_plain_causal:
        return False
    square = call.q_len == call.k_len and torch.equal(mask.query_index, mask.key_index)
    last = call.q_len == 1 and int(mask.query_index[0]) >= int(mask.key_index[-1])
    return square or last


def _flash(call: AttentionCall) -> Attended:
    """Return `Everything` without statistics; sink logits scale the output afterwards."""
    output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        call.query, call.key, call.value, 0.0, call.q_len > 1, scale=call.scale
    )
    lse = lse.float()
    if call.sinks is not None:
        with_sink = torch.logaddexp(lse, call.sinks.float()[None, :, None])
        output = (output * torch.exp(lse - with_sink)[..., None]).to(call.query.dtype)
        lse = with_sink
    return Attended(output, lse)


def _cut(want: Want, row: int, queries: Tensor, keys: Tensor) -> Want:
    """Return the want of one sequence, its gathered keys renumbered."""
    if want.gather is None:
        return want
    index = want.gather[row : row + 1, :, queries].long()
    new = torch.full((int(max(index.max(), keys.max())) + 2,), -1)
    new[keys] = torch.arange(len(keys))
    return replace(want, gather=new[index])


def _paste(row: int, queries: Tensor, keys: Tensor, done: Attended, whole: Attended) -> None:
    """Write the result of one sequence into that of the call."""
    whole.output[row, :, queries] = done.output[0]
    whole.lse[row, :, queries] = done.lse[0]
    for name, value in done.statistics.items():
        target = whole.statistics[name][row]
        if name == "pooled":
            target.copy_(value[0])
        elif name == "received":
            target[:, keys] = value[0]
        elif name == "top_index":
            index = value[0].long()
            target[:, queries] = keys[index.clamp(min=0)].where(index >= 0, -1).int()
        else:
            target[:, queries] = value[0]


KERNEL: Kernel = Blocked()
