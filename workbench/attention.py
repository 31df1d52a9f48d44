"""The attention function and mask function that transformers calls while a policy is active.

Both are registered once under the name `sparselens`. `sparselens_mask` replaces the T × T mask by an `Allowed`, so that
causality, native sliding windows and padding reach the kernel without memory that grows with tokens squared.
`sparselens_attention` hands the call to the `Execution` that owns the calling module; outside `under(...)` it raises.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import (
    and_masks,
    causal_mask_function,
    sliding_window_overlay,
)

from sparselens.kernels.call import Allowed
from sparselens.workbench.execution import execution_of

IMPLEMENTATION = "sparselens"

IndexMask = Callable[[Tensor, Tensor, Tensor], Tensor]

_AND_CODE = and_masks(causal_mask_function).__code__
_WINDOW_CODE = sliding_window_overlay(1).__code__


@dataclass(frozen=True, eq=False)
class MaskPlan:
    """What a forward pass may see, in index form: the mask and the absolute positions behind it.

    `query_positions [batch or 1, q_len]`, `key_positions [batch or 1, k_len]`: int64, padding is -1.
    """

    allowed: Allowed
    query_positions: Tensor
    key_positions: Tensor


def sparselens_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int | Tensor = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    *,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **_: Any,
) -> MaskPlan:
    """Return the mask of one forward pass as a `MaskPlan`; arguments as in `transformers.masking_utils.sdpa_mask`.

    Raises `NotImplementedError` for masks that are not causal or cannot be evaluated on index tensors.
    """
    if use_vmap:
        raise NotImplementedError("this model adds a custom mask that cannot be evaluated on index tensors")
    first_query, first_key = int(q_offset), int(kv_offset)
    query_index = torch.arange(first_query, first_query + q_length, device=device)
    key_index = torch.arange(first_key, first_key + kv_length, device=device)
    window, extra = _structure(mask_function, query_index)
    valid = _padding(attention_mask, first_key + kv_length)
    if valid is None:
        return MaskPlan(
            Allowed(query_index, key_index, None, window, extra, None),
            query_index[None],
            key_index[None],
        )
    positions = torch.where(valid, valid.long().cumsum(-1) - 1, -1)
    last = first_query + q_length
    return MaskPlan(
        Allowed(
            query_index,
            key_index,
            valid[:, first_key:],
            window,
            extra,
            valid[:, first_query:last],
        ),
        positions[:, first_query:last],
        positions[:, first_key:],
    )


def _structure(mask_function: Callable[..., Any], query_index: Tensor) -> tuple[int | None, IndexMask | None]:
    """Return (native window, any further mask) of a transformers mask function."""
    if mask_function is causal_mask_function:
        return None, None
    if mask_function.__code__ is _AND_CODE and mask_function.__closure__:
        parts = mask_function.__closure__[0].cell_contents
        overlays = [part for part in parts if part is not causal_mask_function]
        if len(parts) == 2 and len(overlays) == 1 and overlays[0].__code__ is _WINDOW_CODE:
            return int(overlays[0].__closure__[0].cell_contents), None
    zero = torch.zeros((), dtype=torch.long, device=query_index.device)
    if bool(mask_function(zero, zero, query_index[-1], query_index[-1] + 1)):
        raise NotImplementedError(
            "this model's attention is not causal: its mask lets a query see the future"
        )

    def further(batch_index: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen: Tensor = mask_function(batch_index, zero, query, key)
        return seen

    return None, further


def _padding(attention_mask: Tensor | None, length: int) -> Tensor | None:
    """Return `valid [batch, length]`, or None where nothing is padding."""
    if attention_mask is None:
        return None
    valid = attention_mask.bool()
    if valid.shape[-1] < length:
        valid = torch.nn.functional.pad(valid, (0, length - valid.shape[-1]))
    valid = valid[:, :length]
    return None if bool(valid.all()) else valid


def _from_tensor(mask: Tensor, q_len: int, k_len: int) -> MaskPlan:
    """Return the plan of a ready-made `[batch, 1, q_len, k_len]` mask that the caller passed to the model."""
    visible = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    visible = visible[..., :q_len, :k_len]
    if visible.shape[1] != 1:
        raise NotImplementedError(
            f"attention_mask has {visible.shape[1]} heads; one mask for all heads is supported"
        )
    query_index = torch.arange(k_len - q_len, k_len, device=mask.device)
    key_index = torch.arange(k_len, device=mask.device)
    first = k_len - q_len

    def further(batch_index: Tensor, query: Tensor, key: Tensor) -> Tensor:
        rows = batch_index.clamp_max(visible.shape[0] - 1)
        return visible[rows, 0, query - first, key]

    return MaskPlan(
        Allowed(query_index, key_index, None, None, further, None), query_index[None], key_index[None]
    )


def sparselens_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: MaskPlan | Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Run one layer's attention under the active policy and kernel.

    `query [batch, heads, q_len, head_dim]`, `key, value [batch, kv_heads, k_len, head_dim]` after RoPE. Returns the
    output `[batch, q_len, heads, head_dim]` and no weights: transformers' `output_attentions` stays empty on purpose.
    """
    if dropout:
        raise ValueError("attention dropout is not supported under a policy; call model.eval() first")
    if attention_mask is None:
        raise RuntimeError(
            f"{type(module).__name__} passed no mask: this model does not build its mask through transformers'"
            " AttentionMaskInterface, so causality and padding cannot be guaranteed"
        )
    plan = (
        _from_tensor(attention_mask, query.shape[2], key.shape[2])
        if isinstance(attention_mask, Tensor)
        else attention_mask
    )
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    output = execution_of(module).attend(
        module, query, key, value, plan, scale=scale, softcap=softcap, sinks=s_aux
    )
    return output.transpose(1, 2), None


AttentionInterface.register(IMPLEMENTATION, sparselens_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sparselens_mask)
