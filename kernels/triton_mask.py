"""The Triton code that says which pairs are kept and allowed, and computes scores."""

# ruff: noqa: N803, SIM108
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def allowed(rules, i_b, o_m, o_n, m_n, q_len, k_len):
    """Return which pairs of queries `o_m` and keys `o_n` the model allows; two blocks that broadcast.

    `m_n`: which of `o_n` are keys at all.
    """
    b_q_index = tl.load(rules.query_index + o_m, mask=o_m < q_len, other=-1)
    b_k_index = tl.load(rules.key_index + o_n, mask=m_n, other=0)
    m_seen = m_n & (o_m < q_len) & (b_k_index <= b_q_index)
    if rules.window is not None:
        m_seen = m_seen & (b_q_index - b_k_index < rules.window)
    if rules.key_valid is not None:
        m_seen = m_seen & (tl.load(rules.key_valid + i_b * k_len + o_n, mask=m_n, other=0) != 0)
    if rules.query_valid is not None:
        m_seen = m_seen & (tl.load(rules.query_valid + i_b * q_len + o_m, mask=o_m < q_len, other=0) != 0)
    return m_seen


@triton.jit
def seen(rules, i_b, i_owner, o_m, o_n, m_n, start, code, q_len, k_len, TILE: tl.constexpr):
    """Return which pairs of queries `o_m` and keys `o_n` are kept and allowed; two blocks that broadcast.

    `code`: what says so (`triton_arguments`), a number or a block. Keys count on from `start`, a number, so that
    one word of bits serves them; a block of single keys is its own `start`.
    """
    m_seen = allowed(rules, i_b, o_m, o_n, m_n, q_len, k_len)
    b_code = tl.zeros([1, 1], tl.int32) + code
    b_q = tl.load(rules.query_position + i_b * q_len + o_m, mask=o_m < q_len, other=0)
    b_k = tl.load(rules.key_position + i_b * k_len + o_n, mask=m_n, other=0)
    p_form = rules.form + i_owner * 4
    m_kept = (b_k < tl.load(p_form)) | (b_q - b_k < tl.load(p_form + 1))
    if rules.columns is not None:
        m_kept = m_kept | striped(rules, i_b, p_form, b_q, b_k, o_n, m_n, start)
    if rules.bits is not None:
        o_first = start % TILE
        o_word = b_code.to(tl.int64) * TILE * rules.words + (o_m % TILE) * rules.words + o_first // 64
        b_word = tl.load(rules.bits + o_word, mask=(b_code >= 0) & (o_m < q_len), other=0)
        m_kept = m_kept | (((b_word >> (o_first % 64 + o_n - start)) & 1) != 0)
    return m_seen & (m_kept | (b_code == -2) | (b_code == -3))  # KEPT, FULL


@triton.jit
def striped(rules, i_b, p_form, b_q, b_k, o_n, m_n, start):
    """Return which pairs are in a marked column or near a marked diagonal.

    Bits of `near` count on with the key's place behind the query, so that two words hold those of a row.
    """
    b_row = tl.zeros([1, 1], tl.int64) + tl.load(p_form + 2)
    m_column = m_n & (b_k >= 0) & (b_row >= 0)
    m_kept = tl.load(rules.columns + b_row * rules.size + b_k, mask=m_column, other=0) != 0
    reach = tl.load(p_form + 3)
    b_first = start + tl.load(rules.key_shift + i_b) - b_q // reach * reach + (rules.size + 128)
    p_word = rules.near + b_row * rules.near_words + b_first // 64
    b_low = tl.load(p_word, mask=(b_row >= 0) & (b_first >= 0), other=0)
    b_high = tl.load(p_word + 1, mask=(b_row >= 0) & (b_first >= 0), other=0)
    b_bit = b_first % 64 + (o_n - start)
    return m_kept | (((tl.where(b_bit < 64, b_low, b_high) >> (b_bit % 64)) & 1) != 0)


@triton.jit
def tanh(x):
    """Return tanh to float32 precision: a series near 0, where the quotient would cancel."""
    square = x * x
    near = x * (1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835)))))
    far = 1 - 2 / (tl.exp2(x * (2 * LOG2E)) + 1)
    return tl.where(square < 0.0625, near, far)


@triton.jit
def product(b_left, b_right, UPCAST: tl.constexpr):
    """Return a matrix product in float32; `UPCAST` because the interpreter reads bfloat16 as integers."""
    if UPCAST:
        b_left = b_left.to(tl.float32)
        b_right = b_right.to(tl.float32)
    return tl.dot(b_left, b_right, input_precision="ieee")


@triton.jit
def bounded(b_s, inputs):
    """Return scores times `log2(e)`, scaled and under the softcap, from products of queries and keys."""
    if inputs.softcap is not None:
        b_s = tanh(b_s * (inputs.scale / inputs.softcap)) * (inputs.softcap * LOG2E)
    else:
        b_s = b_s * (inputs.scale * LOG2E)
    return b_s


@triton.jit
def load_rows(p_row, o_row, m_row, stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr):
    """Return rows `o_row` of a matrix, `[rows, BLOCK]` with zeros beyond `WIDTH`; `WHOLE`: all rows are there."""
    o_d = tl.arange(0, BLOCK)
    p_cell = p_row + o_row.to(tl.int64)[:, None] * stride + o_d[None, :]
    if WHOLE:
        if WIDTH == BLOCK:
            b_rows = tl.load(p_cell)
        else:
            b_rows = tl.load(p_cell, mask=o_d[None, :] < WIDTH, other=0.0)
    else:
        b_rows = tl.load(p_cell, mask=m_row[:, None] & (o_d[None, :] < WIDTH), other=0.0)
    return b_rows
