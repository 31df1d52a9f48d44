"""The Triton code of the tile kernel: attention and row statistics of one block of queries, in one pass.

The same code without an output keeps the largest weights of each row instead: in a pass of its own, so that
the search does not slow down the pipeline of loads and products.

Runs compiled on a GPU, or under Triton's interpreter. Scores are held times `log2(e)`, so that weights are
`exp2`. Names: `b_` blocks, `o_` offsets, `m_` masks, `i_` ids, `p_` pointers; capitals are sizes and switches
known when it is compiled.
"""

# ruff: noqa: N803, N806, PLR0915
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from sparselens.kernels.triton_mask import allowed, bounded, load_rows, product, seen
from sparselens.kernels.triton_top import finish_top, keep_largest

LN2 = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def attend_tiles(
    inputs, lists, rules, outputs,
    TILE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, E: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_TOP: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Attend from one block of queries of one head to the tiles and keys of its lists, or keep its largest."""
    SUB: tl.constexpr = TILE // BLOCK_N
    i_block = tl.num_programs(0) - 1 - tl.program_id(0)  # under causality the last blocks are the longest
    i_b = (tl.program_id(1) // inputs.heads).to(tl.int64)
    i_h = tl.program_id(1) % inputs.heads
    i_owner = tl.load(lists.owner + tl.program_id(1))
    i_row = i_owner * lists.q_tiles + i_block * BLOCK_M // TILE
    o_m = i_block * BLOCK_M + tl.arange(0, BLOCK_M)
    p_q = inputs.query + i_b * inputs.q_b + i_h.to(tl.int64) * inputs.q_h
    i_kv = (i_h // inputs.group).to(tl.int64)
    p_k = inputs.key + i_b * inputs.k_b + i_kv * inputs.k_h
    p_v = inputs.value + i_b * inputs.v_b + i_kv * inputs.v_h
    b_q = load_rows(p_q, o_m, o_m < inputs.q_len, inputs.q_m, D, BLOCK_D, False)

    b_zero = tl.zeros([BLOCK_M], tl.float32)
    soft = (tl.zeros([BLOCK_M, BLOCK_E], tl.float32), b_zero, b_zero + float("-inf"), b_zero)
    rows = (b_zero, b_zero, b_zero, b_zero)
    top = (
        tl.where(tl.arange(0, BLOCK_TOP) < outputs.top, float("-inf"), float("inf"))[None, :]
        + tl.zeros([BLOCK_M, BLOCK_TOP], tl.float32),
        tl.full([BLOCK_M, BLOCK_TOP], -1, tl.int32),
    )

    first = tl.load(lists.partial_start + i_row)
    last = tl.load(lists.partial_start + i_row + 1)
    for j in range(first * SUB, last * SUB):
        code = tl.load(lists.partial_code + j // SUB)
        start = tl.load(lists.partial_tile + j // SUB) * TILE + (j % SUB) * BLOCK_N
        o_n = start + tl.arange(0, BLOCK_N)
        m_n = o_n < inputs.k_len
        b_k = load_rows(p_k, o_n, m_n, inputs.k_n, D, BLOCK_D, False)
        b_s = bounded(product(b_q, tl.trans(b_k), UPCAST), inputs)
        m_s = seen(
            rules, i_b, i_owner, o_m[:, None], o_n[None, :], m_n[None, :], start, code,
            inputs.q_len, inputs.k_len, TILE,
        )  # fmt: skip
        b_s = tl.where(m_s, b_s, float("-inf"))
        if outputs.output is not None:
            b_v = load_rows(p_v, o_n, m_n, inputs.v_n, E, BLOCK_E, False)
            soft, rows = absorb(
                soft,
                rows,
                b_s,
                b_v,
                rules,
                outputs,
                i_b,
                o_m,
                o_n,
                m_n,
                inputs.q_len,
                inputs.k_len,
                True,
                UPCAST,
            )
        else:
            top = keep_largest(top, b_s, o_n)

    if lists.column is not None:
        first = tl.load(lists.column_start + i_row)
        last = tl.load(lists.column_start + i_row + 1)
        for j in range(first, last, BLOCK_N):
            o_j = j + tl.arange(0, BLOCK_N)
            m_n = o_j < last
            o_n = tl.load(lists.column + o_j, mask=m_n, other=0)
            b_k = load_rows(p_k, o_n, m_n, inputs.k_n, D, BLOCK_D, False)
            b_s = bounded(product(b_q, tl.trans(b_k), UPCAST), inputs)
            m_s = allowed(rules, i_b, o_m[:, None], o_n[None, :], m_n[None, :], inputs.q_len, inputs.k_len)
            b_s = tl.where(m_s, b_s, float("-inf"))
            if outputs.output is not None:
                b_v = load_rows(p_v, o_n, m_n, inputs.v_n, E, BLOCK_E, False)
                soft, rows = absorb(
                    soft,
                    rows,
                    b_s,
                    b_v,
                    rules,
                    outputs,
                    i_b,
                    o_m,
                    o_n,
                    m_n,
                    inputs.q_len,
                    inputs.k_len,
                    True,
                    UPCAST,
                )
            else:
                top = keep_largest(top, b_s, o_n)

    first = tl.load(lists.full_start + i_row)
    last = tl.load(lists.full_start + i_row + 1)
    for j in range(first * SUB, last * SUB):
        start = tl.load(lists.full_tile + j // SUB) * TILE + (j % SUB) * BLOCK_N
        o_n = start + tl.arange(0, BLOCK_N)
        m_n = o_n >= 0
        b_k = load_rows(p_k, o_n, m_n, inputs.k_n, D, BLOCK_D, True)
        b_s = bounded(product(b_q, tl.trans(b_k), UPCAST), inputs)
        if outputs.output is not None:
            b_v = load_rows(p_v, o_n, m_n, inputs.v_n, E, BLOCK_E, True)
            soft, rows = absorb(
                soft,
                rows,
                b_s,
                b_v,
                rules,
                outputs,
                i_b,
                o_m,
                o_n,
                m_n,
                inputs.q_len,
                inputs.k_len,
                False,
                UPCAST,
            )
        else:
            top = keep_largest(top, b_s, o_n)

    if outputs.output is not None:
        finish(soft, rows, inputs, outputs, i_h, o_m, E, BLOCK_E)
    else:
        finish_top(top, inputs, outputs, o_m, BLOCK_TOP)


@triton.jit
def absorb(
    soft, rows, b_s, b_v, rules, outputs, i_b, o_m, o_n, m_n, q_len, k_len,
    NEAR: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Return the running softmax and row statistics, with those of a block of scores.

    `soft`: output, total, highest score, and `sum of weight * (score - highest)`. `rows`: masses at position 0,
    one back and near, and the summed distance. `NEAR`: the block may hold position 0 or keys near the query.
    """
    b_o, b_l, b_high, b_spread = soft
    b_sink, b_previous, b_local, b_distance = rows
    b_new = tl.maximum(b_high, tl.max(b_s, 1))
    b_base = tl.where(b_new == float("-inf"), 0.0, b_new)  # of a row that has no key yet
    b_old = tl.exp2(b_high - b_base)
    b_off = b_s - b_base[:, None]
    b_p = tl.exp2(b_off)
    b_sum = tl.sum(b_p, 1)
    if outputs.entropy is not None:
        b_moved = tl.where(b_high == float("-inf"), 0.0, b_high - b_base) * b_l
        b_spread = (b_spread + b_moved) * b_old + tl.sum(b_p * tl.maximum(b_off, -1e30), 1)
    if outputs.distance is not None:
        b_q_at = tl.load(rules.query_position + i_b * q_len + o_m, mask=o_m < q_len, other=0)
        b_k_at = tl.load(rules.key_position + i_b * k_len + o_n, mask=m_n, other=0)
        last = tl.max(b_k_at, 0)
        b_inside = tl.sum(b_p * (last - b_k_at).to(tl.float32)[None, :], 1)
        b_distance = b_distance * b_old + (b_q_at - last).to(tl.float32) * b_sum + b_inside
    if outputs.sink_mass is not None:
        b_sink = b_sink * b_old
        if NEAR:
            b_k_at = tl.load(rules.key_position + i_b * k_len + o_n, mask=m_n, other=-1)
            b_sink += tl.sum(tl.where(b_k_at[None, :] == 0, b_p, 0.0), 1)
    if outputs.previous_mass is not None:
        b_previous = b_previous * b_old
        if NEAR:
            b_previous += tl.sum(tl.where(gap(rules, i_b, o_m, o_n, m_n, q_len, k_len) == 1, b_p, 0.0), 1)
    if outputs.local_mass is not None:
        b_local = b_local * b_old
        if NEAR:
            b_gap = gap(rules, i_b, o_m, o_n, m_n, q_len, k_len)
            b_local += tl.sum(tl.where(b_gap < outputs.local, b_p, 0.0), 1)
    b_o = b_o * b_old[:, None] + product(b_p.to(b_v.dtype), b_v, UPCAST)
    b_l = b_l * b_old + b_sum
    return (b_o, b_l, b_new, b_spread), (b_sink, b_previous, b_local, b_distance)


@triton.jit
def gap(rules, i_b, o_m, o_n, m_n, q_len, k_len):
    """Return query position - key position, `[m, n]`."""
    b_q_at = tl.load(rules.query_position + i_b * q_len + o_m, mask=o_m < q_len, other=0)
    b_k_at = tl.load(rules.key_position + i_b * k_len + o_n, mask=m_n, other=0)
    return b_q_at[:, None] - b_k_at[None, :]


@triton.jit
def finish(soft, rows, inputs, outputs, i_h, o_m, E: tl.constexpr, BLOCK_E: tl.constexpr):
    """Normalise, add the sink logit to the denominator, and store."""
    b_o, b_l, b_high, b_spread = soft
    m_some = b_high > float("-inf")
    if inputs.sinks is not None:
        b_logit = tl.load(inputs.sinks + i_h) * LOG2E
        b_base = tl.where(m_some, tl.maximum(b_high, b_logit), 0.0)
        b_scale = tl.exp2(b_high - b_base)
        b_total = b_l * b_scale + tl.exp2(b_logit - b_base)
    else:
        b_base = tl.where(m_some, b_high, 0.0)
        b_scale = tl.where(m_some, 1.0, 0.0)
        b_total = b_l
    b_total = tl.where(m_some, b_total, 1.0)
    b_lse = b_base + tl.log2(b_total)
    b_scale = b_scale / b_total
    m_m = o_m < inputs.q_len
    o_row = tl.program_id(1).to(tl.int64) * inputs.q_len + o_m
    o_e = tl.arange(0, BLOCK_E)
    p_o = outputs.output + o_row[:, None] * E + o_e[None, :]
    b_o = b_o * b_scale[:, None]
    tl.store(p_o, b_o.to(outputs.output.dtype.element_ty), mask=m_m[:, None] & (o_e < E)[None, :])
    tl.store(outputs.lse + o_row, tl.where(m_some, b_lse * LN2, float("-inf")), mask=m_m)
    b_sink, b_previous, b_local, b_distance = rows
    if outputs.entropy is not None:
        b_off = tl.where(m_some, b_lse - b_high, 0.0)
        tl.store(outputs.entropy + o_row, (b_l * b_off - b_spread) * b_scale * LN2, mask=m_m)
    if outputs.sink_mass is not None:
        tl.store(outputs.sink_mass + o_row, b_sink * b_scale, mask=m_m)
    if outputs.previous_mass is not None:
        tl.store(outputs.previous_mass + o_row, b_previous * b_scale, mask=m_m)
    if outputs.local_mass is not None:
        tl.store(outputs.local_mass + o_row, b_local * b_scale, mask=m_m)
    if outputs.distance is not None:
        tl.store(outputs.distance + o_row, b_distance * b_scale, mask=m_m)
