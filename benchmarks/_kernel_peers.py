"""What `benchmarks/kernels.py` compares with: PyTorch's causal and masked attention, and compiled FlexAttention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad, scaled_dot_product_attention

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.selection import Band, Selection, Stripes, Tiles

BLOCK = 128
_compiled: list[Any] = []
torch._dynamo.config.recompile_limit = 100  # each row has a mask of its own
torch._dynamo.config.fail_on_recompile_limit_hit = True  # rather than to go on uncompiled


def sdpa(call: AttentionCall, *, grouped: bool) -> Callable[[], object]:
    """Causal SDPA, with grouped queries or with keys and values repeated beforehand."""
    if grouped:
        return lambda: scaled_dot_product_attention(
            call.query, call.key, call.value, is_causal=True, enable_gqa=True
        )
    key, value = (tensor.repeat_interleave(call.group, 1) for tensor in (call.key, call.value))
    return lambda: scaled_dot_product_attention(call.query, key, value, is_causal=True)


def sdpa_masked(call: AttentionCall, selection: Selection) -> Callable[[], object]:
    """SDPA with the selection as a boolean mask of each head; its time does not depend on what is in the mask."""
    parts = [selection.kept(call, start, stop) for start, stop in call.row_blocks()]
    mask = torch.cat(parts, 2).expand(-1, call.heads, -1, -1)
    return lambda: scaled_dot_product_attention(call.query, call.key, call.value, mask, enable_gqa=True)


def flex(call: AttentionCall, selection: Selection) -> Callable[[], Tensor]:
    """FlexAttention, compiled, over the tiles that the selection touches; whole ones are not masked.

    The first call compiles. The block mask is made from our own map of tiles, outside the time.
    """
    if not _compiled:
        _compiled.append(torch.compile(flex_attention, dynamic=False))
    tiles = selection.tiles(call, BLOCK)
    lists = [_listed(part[0]) for part in (tiles.some & ~tiles.full, tiles.full)]
    mask = BlockMask.from_kv_blocks(
        *lists[0], *lists[1], BLOCK_SIZE=BLOCK, mask_mod=_kept(selection, call.q_len)
    )
    attend = _compiled[0]
    return lambda: attend(call.query, call.key, call.value, block_mask=mask, enable_gqa=True)


def _listed(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many tiles each row of tiles has, and which, first: int32, as `BlockMask` wants them."""
    order = tiles.int().argsort(dim=-1, descending=True, stable=True)
    return tiles.sum(-1)[None].int(), order[None].int()


def _kept(selection: Selection, length: int) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return the selection as FlexAttention's function of batch, head, query and key."""
    match selection:
        case Band():
            sink, window = selection.sink, selection.window
            return lambda b, h, q, k: (q >= k) & ((k < sink) | (q - k < window))
        case Tiles():
            kept, high, wide = selection.map[0], selection.block_q, selection.block_k
            return lambda b, h, q, k: (q >= k) & kept[h, q // high, k // wide]
        case Stripes() if selection.tile:
            tile = selection.tile
            heads = torch.arange(selection.columns.shape[1])[:, None]
            column, near = (torch.zeros(len(heads), 2 * length, dtype=torch.bool) for _ in range(2))
            column[heads, selection.columns[0]] = True
            near[heads, selection.distances[0] + tile] = True
            before = pad(near.long().cumsum(-1), (1, tile))
            near = before[:, tile : tile + 2 * length] > before[:, : 2 * length]
            return lambda b, h, q, k: (q >= k) & (column[h, k] | near[h, q // tile * tile - k + tile])
    raise ValueError(f"no FlexAttention mask is written for {selection.kind}")
