"""The Triton code that keeps the largest weights of each row. Names as in `triton_device`."""

# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def keep_largest(top, b_s, o_n):
    """Return the largest scores of each row so far and their keys, unordered, with those of `b_s` among them.

    Takes one more per row and turn, as long as some row holds one that beats its smallest.
    """
    b_top, b_name = top
    o_column = tl.arange(0, b_s.shape[1])
    o_slot = tl.arange(0, b_top.shape[1])
    b_best = tl.max(b_s, 1)
    b_low = tl.min(b_top, 1)
    more = tl.max((b_best > b_low).to(tl.int32), 0)
    while more > 0:
        m_at = o_column[None, :] == tl.argmax(b_s, 1)[:, None]
        b_key = tl.max(tl.where(m_at, o_n[None, :], -1), 1)
        m_slot = (o_slot[None, :] == tl.argmin(b_top, 1)[:, None]) & (b_best > b_low)[:, None]
        b_top = tl.where(m_slot, b_best[:, None], b_top)
        b_name = tl.where(m_slot, b_key[:, None], b_name)
        b_s = tl.where(m_at, float("-inf"), b_s)
        b_best = tl.max(b_s, 1)
        b_low = tl.min(b_top, 1)
        more = tl.max((b_best > b_low).to(tl.int32), 0)
    return b_top, b_name


@triton.jit
def finish_top(top, inputs, outputs, o_m, BLOCK_TOP: tl.constexpr):
    """Store the weights of the largest scores, and their keys."""
    b_top, b_name = top
    m_m = o_m < inputs.q_len
    o_row = tl.program_id(1).to(tl.int64) * inputs.q_len + o_m
    b_lse = tl.load(outputs.lse + o_row, mask=m_m, other=0.0) * LOG2E
    b_lse = tl.where(b_lse > float("-inf"), b_lse, 0.0)
    o_top = tl.arange(0, BLOCK_TOP)
    o_cell = o_row[:, None] * outputs.top + o_top[None, :]
    m_cell = m_m[:, None] & (o_top < outputs.top)[None, :]
    tl.store(outputs.top_weight + o_cell, tl.exp2(b_top - b_lse[:, None]), mask=m_cell)
    tl.store(outputs.top_index + o_cell, b_name, mask=m_cell)
