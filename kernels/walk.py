"""Decoding in one pass: what a policy keeps when the last tokens of a text come one at a time.

With causal attention a token's query, key and value do not depend on later tokens, so a text whose last tokens are
decoded with a cache gives the same numbers as one forward pass in which each of those rows keeps what its decode step
would have kept. `walked` makes that selection: the policy sees the prompt as one prefill call, then each further
token as a decode call with the keys up to it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Bits, Everything, Selection, Spliced, pack


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
    before = policy.selection_for(_part(call, 0, prefill), memory)
    rows = []
    for at in range(prefill, call.q_len):
        one = replace(_part(call, at, at + 1), phase="decode", step=at - prefill + 1)
        rows.append(_row(policy.selection_for(one, memory), one, call.k_len))
    if not rows:
        return before
    if isinstance(before, Everything) and all(row is None for row in rows):
        return before
    full = torch.ones(1, 1, 1, call.k_len, dtype=torch.bool, device=call.device)
    masks = [full if row is None else row for row in rows]
    heads = max(mask.shape[1] for mask in masks)
    after = torch.cat([pack(mask.expand(1, heads, 1, -1)) for mask in masks], 2)
    return Spliced(prefill, before, Bits(after, call.k_len))


def _part(call: AttentionCall, start: int, stop: int) -> AttentionCall:
    """Return the queries `start:stop` of a text with the keys up to `stop`."""
    return call.sequence(
        0, torch.arange(start, stop, device=call.device), torch.arange(stop, device=call.device)
    )


def _row(selection: Selection, call: AttentionCall, k_len: int) -> Tensor | None:
    """Return one decoded token's mask `[1, heads or 1, 1, k_len]`, None where it keeps everything."""
    if isinstance(selection, Everything):
        return None
    kept = selection.rows(call, 0, 1)
    return torch.nn.functional.pad(kept, (0, k_len - kept.shape[-1]), value=False)
