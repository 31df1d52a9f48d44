"""Decoding in one pass: what a policy keeps when the last tokens of a text come one at a time.

With causal attention a token's query, key and value do not depend on later tokens, so a text whose last tokens are
decoded with a cache gives the same numbers as one forward pass in which each of those rows keeps what its decode step
would have kept. `walked` makes that selection: the policy sees the prompt as one prefill call, then each further
token as a decode call with the keys up to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.memory import Memory, Walk
from sparselens.kernels.policy_type import Policy
from sparselens.kernels.selection import (
    Biased,
    Bits,
    Everything,
    Groups,
    Mixture,
    Selection,
    Spliced,
    Union,
    pack,
)
from sparselens.kernels.selection_biased import stacked_bias


def chosen(policy: Policy, call: AttentionCall, memory: Memory, decode: int | None) -> Selection:
    """Return what `policy` keeps of a call, the last `decode` tokens one at a time; None asks it once."""
    if decode is None:
        return policy.selection_for(call, memory)
    return walked(policy, call, memory, call.q_len - decode)


def walked(policy: Policy, call: AttentionCall, memory: Memory, prefill: int) -> Selection:
    """Return what `policy` keeps when the first `prefill` tokens are one prefill and the others are decoded.

    `call` is a whole text: one sequence without padding, as many queries as keys. Raises `ValueError` on another
    call, or a `prefill` that does not lie in 1 … tokens. Counts one selection for the prefill and one for each
    decoded token in `memory`.
    """
    if call.batch != 1 or call.q_len != call.k_len or call.allowed.key_valid is not None:
        raise ValueError("tokens are decoded one at a time in a whole text without padding, one at a time")
    if not 1 <= prefill <= call.q_len:
        raise ValueError(f"the prefill is 1 to {call.q_len} tokens, not {prefill}")
    with _standing(policy, call, memory, 0):
        before = policy.selection_for(_part(call, 0, prefill), memory)
    rows, selections = [], []
    for at in range(prefill, call.q_len):
        step = at - prefill + 1
        one = replace(_part(call, at, at + 1), phase="decode", step=step)
        with _standing(policy, call, memory, step):
            selections.append(policy.selection_for(one, memory))
            rows.append(_row(selections[-1], one, call.k_len))
    if all(row is None for row in rows):
        after: Selection = Everything()
    else:
        full = torch.ones(1, 1, 1, call.k_len, dtype=torch.bool, device=call.device)
        masks = [full if row is None else row for row in rows]
        heads = max(mask.shape[1] for mask in masks)
        after = Bits(torch.cat([pack(mask.expand(1, heads, 1, -1)) for mask in masks], 2), call.k_len)
    bias = stacked_bias(selections, call)
    if bias is not None:
        after = Biased(after, bias.columns, bias.bias)
    if isinstance(before, Everything) and isinstance(after, Everything):
        return before
    return Spliced(prefill, _widened(before, call.k_len), after) if rows else before


@contextmanager
def _standing(policy: Policy, call: AttentionCall, memory: Memory, step: int) -> Iterator[None]:
    """Tell `memory` which layer and step is asked for while the block lasts."""
    memory.walk = Walk(call.layer, step, policy.reads_layers)
    try:
        yield
    finally:
        memory.walk = None


def _part(call: AttentionCall, start: int, stop: int) -> AttentionCall:
    """Return the queries `start:stop` of a text with the keys up to `stop`."""
    mask = call.allowed
    raw_query, raw_key = call.query_raw, call.key_raw
    return replace(
        call,
        query=call.query[:, :, start:stop],
        key=call.key[:, :, :stop],
        value=call.value[:, :, :stop],
        query_positions=call.query_positions[:, start:stop],
        key_positions=call.key_positions[:, :stop],
        allowed=replace(
            mask, query_index=mask.query_index[start:stop], key_index=mask.key_index[:stop], query_valid=None
        ),
        query_raw=None if raw_query is None else lambda: raw_query()[:, :, start:stop],
        key_raw=None if raw_key is None else lambda: raw_key()[:, :, :stop],
    )


def _widened(selection: Selection, k_len: int) -> Selection:
    """Return a prompt's selection for a call with `k_len` keys; keys beyond the prompt are not kept."""
    match selection:
        case Bits():
            return Bits(pad(selection.packed, (0, -(-k_len // 8) - selection.packed.shape[-1])), k_len)
        case Groups():
            wide = k_len - selection.key_group.shape[-1]
            return replace(selection, key_group=pad(selection.key_group, (0, wide), value=-1))
        case Union():
            return Union(tuple(_widened(part, k_len) for part in selection.parts))
        case Mixture():
            return Mixture([(heads, _widened(part, k_len)) for heads, part in selection.parts])
        case Biased():
            return replace(selection, kept_keys=_widened(selection.kept_keys, k_len))
    return selection


def _row(selection: Selection, call: AttentionCall, k_len: int) -> Tensor | None:
    """Return one decoded token's mask `[1, heads or 1, 1, k_len]`, None where it keeps everything."""
    if isinstance(selection, Everything):
        return None
    kept = selection.rows(call, 0, 1)
    return pad(kept, (0, k_len - kept.shape[-1]), value=False)
