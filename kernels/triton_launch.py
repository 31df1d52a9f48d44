"""Runs the Triton kernels of a prefill: the tile pass, and, where somebody wants them, the passes after it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sparselens.kernels import triton_device, triton_second_pass
from sparselens.kernels.call import AttentionCall
from sparselens.kernels.kernel import Attended
from sparselens.kernels.selection import Selection
from sparselens.kernels.statistics import ROW_NAMES, Pools, Want
from sparselens.kernels.triton_arguments import UNTOUCHED, ByKey, Inputs, Outputs
from sparselens.kernels.triton_formula import tile_for
from sparselens.kernels.triton_schedule import Schedule, schedule

MASSES = frozenset({"sink_mass", "previous_mass", "local_mass"})


@dataclass(frozen=True)
class Blocks:
    """Sizes of a launch: `tile` of the lists, queries and keys of one step (they divide it), warps, stages."""

    tile: int
    block_m: int
    block_n: int
    num_warps: int = 4
    num_stages: int = 2


def inputs_of(call: AttentionCall) -> Inputs:
    """Return a call's tensors as a kernel reads them; copied only where the last axis is not dense."""
    query, key, value = (
        tensor.detach() if tensor.stride(-1) == 1 else tensor.detach().contiguous()
        for tensor in (call.query, call.key, call.value)
    )
    sinks = None if call.sinks is None else call.sinks.detach().float().contiguous()
    softcap = None if call.softcap is None else float(call.softcap)
    q_b, q_h, q_m = query.stride()[:3]
    k_b, k_h, k_n = key.stride()[:3]
    v_b, v_h, v_n = value.stride()[:3]
    return Inputs(
        query, key, value, sinks, q_b, q_h, q_m, k_b, k_h, k_n, v_b, v_h, v_n, float(call.scale), softcap,
        call.heads, call.group, call.q_len, call.k_len,
    )  # fmt: skip


def width(size: int) -> int:
    """Return the power of two that holds `size` columns, at least 16 (what a matrix product takes)."""
    return max(16, 1 << (size - 1).bit_length())


def plan_prefill(call: AttentionCall, selection: Selection, want: Want, tile: int | None) -> Schedule:
    """Return the work of a call: what it computes, for `attend_prefill` of the same call and want."""
    tile = tile or tile_for(selection)
    return schedule(call, selection, tile, max(want.local, 2) if want.names & MASSES else None)


def attend_prefill(call: AttentionCall, work: Schedule, want: Want, blocks: Blocks, upcast: bool) -> Attended:
    """Attend from every query of a call as planned; statistics as wanted."""
    inputs = inputs_of(call)
    done = _tile_pass(call, inputs, work, want, blocks, upcast)
    if "top" in want.names:
        done.statistics |= _top(call, inputs, work, done.lse, want, blocks, upcast)
    if want.names & {"received", "pooled", "gathered"}:
        pools = Pools.of(call, want.cells) if "pooled" in want.names else Pools(1 << 30, 1)
        by_key = _by_key(call, work, blocks, pools)
        if want.gather is not None:
            done.statistics["gathered"] = _gathered(call, inputs, work, by_key, done.lse, want.gather, blocks)
        if want.names & {"received", "pooled"}:
            sums = _sums(call, inputs, work, by_key, done.lse, blocks, upcast)
            done.statistics |= _from_sums(call, sums, pools, want)
    return done


def _tile_pass(
    call: AttentionCall, inputs: Inputs, work: Schedule, want: Want, blocks: Blocks, upcast: bool
) -> Attended:
    rows = (call.batch, call.heads, call.q_len)
    done = Attended(
        torch.empty(*rows, call.value.shape[-1], dtype=call.query.dtype, device=call.device),
        torch.empty(rows, device=call.device),
        {name: torch.empty(rows, device=call.device) for name in sorted(want.names & ROW_NAMES)},
    )
    named: dict[str, Any] = {name: done.statistics.get(name) for name in ROW_NAMES}
    outputs = Outputs(
        done.output, done.lse, top_weight=None, top_index=None, top=0, local=want.local, **named
    )
    _launch(call, inputs, work, outputs, blocks, upcast)
    return done


def _launch(
    call: AttentionCall, inputs: Inputs, work: Schedule, outputs: Outputs, blocks: Blocks, upcast: bool
) -> None:
    size = call.value.shape[-1]
    triton_device.attend_tiles[(-(-call.q_len // blocks.block_m), call.batch * call.heads)](
        inputs, work.lists, work.rules, outputs,
        TILE=blocks.tile, BLOCK_M=blocks.block_m, BLOCK_N=blocks.block_n,
        D=call.head_dim, BLOCK_D=width(call.head_dim), E=size, BLOCK_E=width(size),
        BLOCK_TOP=1 << max(outputs.top - 1, 0).bit_length(), UPCAST=upcast,
        num_warps=blocks.num_warps, num_stages=blocks.num_stages, enable_fp_fusion=True,
    )  # fmt: skip


def _top(
    call: AttentionCall, inputs: Inputs, work: Schedule, lse: Tensor, want: Want, blocks: Blocks, upcast: bool
) -> dict[str, Tensor]:
    """Return the top keys in descending order; a weight of 0 has no index."""
    rows = (call.batch, call.heads, call.q_len, want.top)
    weight = torch.empty(rows, device=call.device)
    index = torch.empty(rows, dtype=torch.int32, device=call.device)
    nothing: dict[str, Any] = dict.fromkeys(ROW_NAMES)
    outputs = Outputs(
        None, lse, top_weight=weight, top_index=index, top=want.top, local=want.local, **nothing
    )
    small = replace(blocks, block_m=min(64, blocks.block_m), num_warps=4)  # more programs hide the waits
    _launch(call, inputs, work, outputs, small, upcast)
    weight, order = weight.sort(-1, descending=True)
    return {"top_weight": weight, "top_index": index.gather(-1, order).masked_fill_(weight == 0, -1)}


def _by_key(call: AttentionCall, work: Schedule, blocks: Blocks, pools: Pools) -> ByKey:
    """Return the touched tiles in the order of keys, and the query tiles of each pool of rows."""
    code = work.code_of.transpose(2, 3)
    touched = code != UNTOUCHED
    k_tiles, q_tiles = code.shape[2:]
    start = torch.nn.functional.pad(touched.flatten().cumsum(0), (1, 0)).int()
    listed = None if work.listed is None else work.listed.contiguous()
    return ByKey(
        work.lists.owner,
        start,
        touched.nonzero()[:, 3].int(),
        code[touched],
        work.code_of.contiguous(),
        listed,
        0 if listed is None else listed.shape[-1],
        q_tiles,
        k_tiles,
        _pool_tiles(call, pools, blocks.tile),
        pools.pool,
    )


def _pool_tiles(call: AttentionCall, pools: Pools, tile: int) -> Tensor:
    """Return the query tiles that hold rows of each pool: int32 `[batch, pools, 2]`, first and last + 1."""
    pool = torch.div(call.query_positions, pools.pool, rounding_mode="floor").expand(call.batch, -1)
    row = (torch.arange(call.q_len, device=call.device) // tile).expand(call.batch, -1)
    place = pool.where(pool >= 0, pools.size)
    shape = (call.batch, pools.size + 1)
    first = torch.full(shape, call.q_len, device=call.device).scatter_reduce(1, place, row, "amin")
    last = torch.full(shape, -1, device=call.device).scatter_reduce(1, place, row, "amax") + 1
    return torch.stack([first.minimum(last), last], -1)[:, : pools.size].int().contiguous()


def _sums(
    call: AttentionCall,
    inputs: Inputs,
    work: Schedule,
    by_key: ByKey,
    lse: Tensor,
    blocks: Blocks,
    upcast: bool,
) -> Tensor:
    """Return summed weights per row pool and key, float32 `[batch, heads, pools, k_len]`."""
    pools = by_key.pool_tiles.shape[1]
    sums = torch.empty(call.batch, call.heads, pools, call.k_len, device=call.device)
    sizes: dict[str, Any] = {
        "TILE": blocks.tile, "BLOCK_M": blocks.block_m, "BLOCK_N": blocks.block_n,
        "D": call.head_dim, "BLOCK_D": width(call.head_dim), "UPCAST": upcast,
        "num_warps": blocks.num_warps, "num_stages": blocks.num_stages, "enable_fp_fusion": True,
    }  # fmt: skip
    rest = (pools, call.batch * call.heads)
    arguments = (inputs, by_key, work.rules, lse, sums)
    triton_second_pass.sum_tiles[(-(-call.k_len // blocks.block_n), *rest)](*arguments, **sizes)
    if by_key.listed is not None:
        triton_second_pass.sum_listed[(-(-by_key.n_listed // blocks.block_n), *rest)](*arguments, **sizes)
    return sums


def _from_sums(call: AttentionCall, sums: Tensor, pools: Pools, want: Want) -> dict[str, Tensor]:
    """Return `received` and `pooled` from sums per row pool."""
    found: dict[str, Tensor] = {}
    if "received" in want.names:
        found["received"] = sums.sum(2)
    if "pooled" in want.names:
        names = torch.arange(pools.size, device=call.device)
        to_key = (call.key_positions[:, :, None] // pools.pool == names).float()
        belongs = (
            torch.div(call.query_positions, pools.pool, rounding_mode="floor")[:, None] == names[:, None]
        )
        count = belongs.sum(-1).clamp(min=1)[:, None, :, None]
        found["pooled"] = torch.matmul(sums, to_key[:, None]) / count
    return found


def _gathered(
    call: AttentionCall,
    inputs: Inputs,
    work: Schedule,
    by_key: ByKey,
    lse: Tensor,
    gather: Tensor,
    blocks: Blocks,
) -> Tensor:
    """Return the weights at the wanted keys, shaped as `gather`."""
    index = gather.int().contiguous()
    weight = torch.empty(index.shape, device=call.device)
    triton_second_pass.weights_at_keys[(-(-call.q_len // blocks.block_m), call.batch * call.heads)](
        inputs, by_key, work.rules, lse, index, weight, index.shape[-1],
        TILE=blocks.tile, BLOCK_M=blocks.block_m, D=call.head_dim, BLOCK_D=width(call.head_dim),
        num_warps=blocks.num_warps, enable_fp_fusion=True,
    )  # fmt: skip
    return weight
