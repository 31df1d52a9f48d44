"""Runs the Triton kernels of a call with few queries: gathered keys in parts, then the parts together."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparselens.kernels import triton_decode_device
from sparselens.kernels.call import AttentionCall
from sparselens.kernels.kernel import Attended
from sparselens.kernels.selection import Everything, Selection
from sparselens.kernels.statistics import Pools, Want, empty_statistics, reduce_rows
from sparselens.kernels.triton_arguments import KeyWork, Parts
from sparselens.kernels.triton_launch import inputs_of, width

STEP = 64  # keys a step
SHORTEST = 256  # keys that are worth a part of their own


def attend_few(
    call: AttentionCall, selection: Selection, want: Want, splits: int | None, upcast: bool
) -> Attended:
    """Attend from few queries, each key-value head over the list of the keys that any of its rows keeps.

    Where statistics are wanted, the scores of these rows (`k_len` numbers a row) are held and reduced by
    `statistics.reduce_rows`, the definition.
    """
    kept = selection.kept(call, 0, call.q_len)
    start, key, longest = _lists(call, selection, kept)
    n_parts = splits or _parts(call, longest)
    part_keys = STEP * max(1, -(-longest // (STEP * n_parts)))
    inputs = inputs_of(call)
    size, pairs = call.value.shape[-1], call.batch * call.kv_heads
    rows = (call.batch, call.heads, call.q_len)
    block_r = width(call.group * call.q_len)
    parts = Parts(
        torch.empty(pairs, n_parts, block_r, width(size), device=call.device),
        torch.empty(pairs, n_parts, block_r, device=call.device),
        torch.empty(pairs, n_parts, block_r, device=call.device),
    )
    output = torch.empty(*rows, size, dtype=call.query.dtype, device=call.device)
    lse = torch.empty(rows, device=call.device)
    scores = (
        torch.full((*rows, call.k_len), -math.inf, dtype=torch.float32, device=call.device)
        if want.names
        else None
    )
    flags = kept.expand(call.batch, call.heads, -1, -1).view(torch.uint8)
    b, h, m = flags.stride()[:3]
    work = KeyWork(flags, b, h, m, start, key)
    sizes = {"BLOCK_R": block_r, "E": size, "BLOCK_E": width(size)}
    triton_decode_device.attend_part[(n_parts, pairs)](
        inputs, work, parts, scores, part_keys,
        BLOCK_N=STEP, D=call.head_dim, BLOCK_D=width(call.head_dim), UPCAST=upcast, num_warps=4, enable_fp_fusion=True,
        **sizes,
    )  # fmt: skip
    triton_decode_device.join_parts[(call.group * call.q_len, pairs)](
        inputs, parts, output, lse, n_parts, enable_fp_fusion=True, **sizes
    )
    return Attended(output, lse, {} if scores is None else _statistics(call, scores, lse, want))


def _lists(
    call: AttentionCall, selection: Selection, kept: Tensor
) -> tuple[Tensor | None, Tensor | None, int]:
    """Return where each key-value head's list begins, the keys, and the length of the longest list.

    No list where everything is kept: its keys are the tensor's own rows.
    """
    if isinstance(selection, Everything):
        return None, None, call.k_len
    by_head = kept.any(2)
    if by_head.shape[1] > 1:
        by_head = by_head.view(-1, call.kv_heads, call.group, call.k_len).any(2)
    union = by_head.expand(call.batch, call.kv_heads, -1).flatten(0, 1)
    count = union.sum(-1)
    return pad(count.cumsum(0), (1, 0)).int(), union.nonzero()[:, 1].int(), int(count.max())


def _parts(call: AttentionCall, longest: int) -> int:
    """Return how many parts keep the GPU busy, each of some length."""
    if call.device.type != "cuda":
        return 2
    processors = torch.cuda.get_device_properties(call.device).multi_processor_count
    return max(1, min(2 * processors // (call.batch * call.kv_heads), -(-longest // SHORTEST)))


def _statistics(call: AttentionCall, scores: Tensor, lse: Tensor, want: Want) -> dict[str, Tensor]:
    """Return the statistics of rows whose scores (times `log2(e)`) are held."""
    weights = torch.exp2(scores - (lse * math.log2(math.e)).nan_to_num(neginf=0.0)[..., None])
    pools = Pools.of(call, want.cells)
    statistics = empty_statistics(call, want, pools)
    reduce_rows(statistics, weights, call, 0, want, pools)
    return statistics
