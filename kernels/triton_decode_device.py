"""The Triton code for few queries: lists of keys, read in parts at once, and the parts put together.

The queries of all heads that share a key-value head make one matrix, so that a key is loaded once for them
(as in Flash-Decoding, arXiv:2311.01282). Names as in `triton_device`.
"""

# ruff: noqa: N803, PLR0915, SIM108
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from sparselens.kernels.triton_mask import bounded, load_rows, product

LN2 = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def attend_part(
    inputs, work, parts, p_scores, part_keys,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, E: tl.constexpr, BLOCK_E: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Attend from the rows of one key-value head to one part of its list of keys."""
    i_part = tl.program_id(0)
    kv_heads = inputs.heads // inputs.group
    i_b = (tl.program_id(1) // kv_heads).to(tl.int64)
    i_kv = (tl.program_id(1) % kv_heads).to(tl.int64)
    o_r = tl.arange(0, BLOCK_R)
    m_r = o_r < inputs.group * inputs.q_len
    o_h = i_kv * inputs.group + o_r // inputs.q_len
    o_q = o_r % inputs.q_len
    o_d = tl.arange(0, BLOCK_D)
    p_q = (
        inputs.query + i_b * inputs.q_b + o_h[:, None] * inputs.q_h + o_q[:, None] * inputs.q_m + o_d[None, :]
    )
    b_q = tl.load(p_q, mask=m_r[:, None] & (o_d < D)[None, :], other=0.0)
    p_k = inputs.key + i_b * inputs.k_b + i_kv * inputs.k_h
    p_v = inputs.value + i_b * inputs.v_b + i_kv * inputs.v_h
    p_keep = work.kept + i_b * work.b + o_h * work.h + o_q * work.m

    if work.start is not None:
        base = tl.load(work.start + tl.program_id(1))
        end = tl.load(work.start + tl.program_id(1) + 1)
    else:
        base = 0
        end = inputs.k_len
    first = base + i_part * part_keys
    last = tl.minimum(first + part_keys, end)
    b_o = tl.zeros([BLOCK_R, BLOCK_E], tl.float32)
    b_l = tl.zeros([BLOCK_R], tl.float32)
    b_high = b_l + float("-inf")
    for j in range(first, last, BLOCK_N):
        o_j = j + tl.arange(0, BLOCK_N)
        m_n = o_j < last
        if work.start is not None:
            o_n = tl.load(work.key + o_j, mask=m_n, other=0)
        else:
            o_n = o_j
        b_k = load_rows(p_k, o_n, m_n, inputs.k_n, D, BLOCK_D, False)
        b_s = bounded(product(b_q, tl.trans(b_k), UPCAST), inputs)
        m_s = tl.load(p_keep[:, None] + o_n[None, :], mask=m_r[:, None] & m_n[None, :], other=0) != 0
        b_s = tl.where(m_s, b_s, float("-inf"))
        if p_scores is not None:
            o_row = (i_b * inputs.heads + o_h) * inputs.q_len + o_q
            tl.store(p_scores + o_row[:, None] * inputs.k_len + o_n[None, :], b_s, mask=m_s)
        b_v = load_rows(p_v, o_n, m_n, inputs.v_n, E, BLOCK_E, False)
        b_new = tl.maximum(b_high, tl.max(b_s, 1))
        b_base = tl.where(b_new == float("-inf"), 0.0, b_new)
        b_old = tl.exp2(b_high - b_base)
        b_p = tl.exp2(b_s - b_base[:, None])
        b_l = b_l * b_old + tl.sum(b_p, 1)
        b_o = b_o * b_old[:, None] + product(b_p.to(b_v.dtype), b_v, UPCAST)
        b_high = b_new
    o_row = ((tl.program_id(1) * tl.num_programs(0) + i_part) * BLOCK_R + o_r).to(tl.int64)
    o_e = tl.arange(0, BLOCK_E)
    tl.store(parts.output + o_row[:, None] * BLOCK_E + o_e[None, :], b_o)
    tl.store(parts.total + o_row, b_l)
    tl.store(parts.high + o_row, b_high)


@triton.jit
def join_parts(
    inputs, parts, p_output, p_lse, n_parts,
    BLOCK_R: tl.constexpr, E: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Add up the parts of one row in their order, and the sink logit; store output and log-sum-exp."""
    kv_heads = inputs.heads // inputs.group
    i_r = tl.program_id(0)
    i_kv = tl.program_id(1) % kv_heads
    i_h = i_kv * inputs.group + i_r // inputs.q_len
    o_e = tl.arange(0, BLOCK_E)
    high = float("-inf")
    for i in range(n_parts):
        high = tl.maximum(high, tl.load(parts.high + (tl.program_id(1) * n_parts + i) * BLOCK_R + i_r))
    some = high > float("-inf")
    base = tl.where(some, high, 0.0)
    if inputs.sinks is not None:
        logit = tl.load(inputs.sinks + i_h) * LOG2E
        base = tl.where(some, tl.maximum(high, logit), 0.0)
    total = base * 0.0
    b_o = tl.zeros([BLOCK_E], tl.float32)
    for i in range(n_parts):
        o_row = ((tl.program_id(1) * n_parts + i) * BLOCK_R + i_r).to(tl.int64)
        scale = tl.exp2(tl.load(parts.high + o_row) - base)
        total += scale * tl.load(parts.total + o_row)
        b_o += scale * tl.load(parts.output + o_row * BLOCK_E + o_e)
    if inputs.sinks is not None:
        total += tl.exp2(logit - base)
    total = tl.where(some, total, 1.0)
    i_b = tl.program_id(1) // kv_heads
    i_row = ((i_b * inputs.heads + i_h) * inputs.q_len + i_r % inputs.q_len).to(tl.int64)
    tl.store(p_output + i_row * E + o_e, (b_o / total).to(p_output.dtype.element_ty), mask=o_e < E)
    tl.store(p_lse + i_row, tl.where(some, (base + tl.log2(total)) * LN2, float("-inf")))
