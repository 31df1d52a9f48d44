"""The definition of attention over a selection: row-blocked, any size, any selection, float32 accumulation.

Slow on purpose and short on purpose: every other kernel is compared with this one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.kernel import Attended, Kernel
from sparselens.kernels.selection import Selection
from sparselens.kernels.statistics import NOTHING, Pools, Want, empty_statistics, reduce_rows


class Reference:
    """Softmax over kept and allowed keys, one block of queries at a time."""

    name = "reference"

    def attend(self, call: AttentionCall, selection: Selection, want: Want = NOTHING) -> Attended:
        """Attend as defined; see `Attended` for shapes. Runs any call and any selection."""
        rows = call.query.shape[:3]
        output = call.query.new_zeros(*rows, call.value.shape[-1])
        lse = torch.full(rows, float("-inf"), dtype=call.accumulate, device=call.device)
        pools = Pools.of(call, want.cells)
        statistics = empty_statistics(call, want, pools)
        for start, stop in call.row_blocks():
            scores = call.scores(start, stop).masked_fill_(~selection.rows(call, start, stop), float("-inf"))
            bias = selection.bias_rows(call, start, stop)
            if bias is not None:
                scores += bias
            rows_lse = log_sum_exp(call, scores)
            weights = torch.exp(scores - rows_lse[..., None].nan_to_num(neginf=0.0))
            folded = weights.view(call.batch, call.kv_heads, -1, call.k_len)
            mixed = torch.matmul(folded, call.value.to(call.accumulate))
            output[:, :, start:stop] = mixed.view(call.batch, call.heads, stop - start, -1).to(output.dtype)
            lse[:, :, start:stop] = rows_lse
            if want.names:
                reduce_rows(statistics, weights, call, start, want, pools)
        return Attended(output, lse, statistics)


def log_sum_exp(call: AttentionCall, scores: Tensor) -> Tensor:
    """Return the row normaliser of `scores` `[batch, heads, rows, k_len]`, sink logit included.

    `[batch, heads, rows]`; `-inf` in rows without a key, whether or not there is a sink logit.
    """
    lse = torch.logsumexp(scores, -1)
    if call.sinks is None:
        return lse
    sink = call.sinks.to(lse.dtype)[None, :, None]
    return torch.where(torch.isinf(lse), lse, torch.logaddexp(lse, sink))


KERNEL: Kernel = Reference()
