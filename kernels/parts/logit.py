"""Dot products of vectors that are not rows of the call (pooled, estimated), on the model's own scale."""

from __future__ import annotations

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.parts.block import repeated


def logits(call: AttentionCall, queries: Tensor, keys: Tensor) -> Tensor:
    """Return the scores of queries `[heads, n, d]` and keys `[kv_heads, m, d]`: `[heads, n, m]`, nothing masked."""
    return capped(call, queries @ repeated(keys, call.group).transpose(1, 2) * call.scale)


def capped(call: AttentionCall, scores: Tensor) -> Tensor:
    """Return scaled scores under the model's softcap, if it has one."""
    return scores if call.softcap is None else call.softcap * torch.tanh(scores / call.softcap)
