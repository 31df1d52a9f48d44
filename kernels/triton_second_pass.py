"""The Triton code that needs normalised weights: column sums per row pool, and weights at given keys.

Runs after `triton_device`, once the log-sum-exps are known. Nobody writes where somebody else does: sums are
the same from run to run. Names as there.
"""

# ruff: noqa: N803, N806
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from sparselens.kernels.triton_mask import allowed, bounded, load_rows, product, seen

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def sum_tiles(
    inputs, by_key, rules, p_lse, p_sums,
    TILE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Store the sums over one pool of queries of their weights on one block of keys, in touched tiles."""
    SUB: tl.constexpr = TILE // BLOCK_M
    i_b = (tl.program_id(2) // inputs.heads).to(tl.int64)
    i_owner = tl.load(by_key.owner + tl.program_id(2))
    o_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < inputs.k_len
    b_k = load_keys(inputs, o_n, m_n, D, BLOCK_D)
    first, last = tiles_of_pool(by_key, i_b)
    i_tile = (i_owner * by_key.k_tiles + tl.program_id(0) * BLOCK_N // TILE).to(tl.int64) * by_key.q_tiles
    b_sum = tl.zeros([BLOCK_N], tl.float32)
    begin = tl.load(by_key.start + i_tile + first)
    end = tl.load(by_key.start + i_tile + last)
    for j in range(begin * SUB, end * SUB):
        code = tl.load(by_key.code + j // SUB)
        o_m = tl.load(by_key.tile + j // SUB) * TILE + (j % SUB) * BLOCK_M + tl.arange(0, BLOCK_M)
        b_lse = lse_in_pool(inputs, by_key, rules, p_lse, i_b, o_m)
        b_q = load_queries(inputs, tl.program_id(2), o_m, D, BLOCK_D)
        b_s = bounded(product(b_k, tl.trans(b_q), UPCAST), inputs)
        if code != -3:  # not FULL
            m_s = seen(
                rules, i_b, i_owner, o_m[None, :], o_n[:, None], m_n[:, None], tl.program_id(0) * BLOCK_N, code,
                inputs.q_len, inputs.k_len, TILE,
            )  # fmt: skip
            b_s = tl.where(m_s, b_s, float("-inf"))
        b_sum += tl.sum(tl.exp2(b_s - b_lse[None, :]), 1)
    tl.store(p_sums + place_of_sums(inputs) + o_n, b_sum, mask=m_n)


@triton.jit
def sum_listed(
    inputs, by_key, rules, p_lse, p_sums,
    TILE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Add the same sums on keys that are loaded one by one, over the query tiles that load them so."""
    i_b = (tl.program_id(2) // inputs.heads).to(tl.int64)
    i_owner = tl.load(by_key.owner + tl.program_id(2))
    o_j = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_n = tl.load(by_key.listed + i_owner * by_key.n_listed + o_j, mask=o_j < by_key.n_listed, other=-1)
    m_n = o_n >= 0
    o_n = tl.maximum(o_n, 0)
    b_k = load_keys(inputs, o_n, m_n, D, BLOCK_D)
    first, last = tiles_of_pool(by_key, i_b)
    b_sum = tl.zeros([BLOCK_N], tl.float32)
    for start in range(first * TILE, last * TILE, BLOCK_M):
        o_m = start + tl.arange(0, BLOCK_M)
        i_tile = (i_owner * by_key.q_tiles + start // TILE).to(tl.int64) * by_key.k_tiles
        b_code = tl.load(by_key.code_of + i_tile + o_n // TILE)
        b_lse = lse_in_pool(inputs, by_key, rules, p_lse, i_b, o_m)
        b_q = load_queries(inputs, tl.program_id(2), o_m, D, BLOCK_D)
        b_s = bounded(product(b_k, tl.trans(b_q), UPCAST), inputs)
        m_s = allowed(rules, i_b, o_m[None, :], o_n[:, None], m_n[:, None], inputs.q_len, inputs.k_len)
        m_s = m_s & (b_code == -4)[:, None]  # UNTOUCHED: not among the tiles already
        b_sum += tl.sum(tl.exp2(tl.where(m_s, b_s, float("-inf")) - b_lse[None, :]), 1)
    p_sum = p_sums + place_of_sums(inputs) + o_n
    tl.store(p_sum, tl.load(p_sum, mask=m_n, other=0.0) + b_sum, mask=m_n)


@triton.jit
def weights_at_keys(
    inputs, by_key, rules, p_lse, p_index, p_weight, count,
    TILE: tl.constexpr, BLOCK_M: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Store the weights of one block of queries at `count` keys each, 0 where the index is -1."""
    i_b = (tl.program_id(1) // inputs.heads).to(tl.int64)
    i_h = tl.program_id(1) % inputs.heads
    i_owner = tl.load(by_key.owner + tl.program_id(1))
    o_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    m_m = o_m < inputs.q_len
    o_row = tl.program_id(1).to(tl.int64) * inputs.q_len + o_m
    b_lse = tl.load(p_lse + o_row, mask=m_m, other=float("inf")) * LOG2E
    b_lse = tl.where(b_lse == float("-inf"), float("inf"), b_lse)
    b_q = load_queries(inputs, tl.program_id(1), o_m, D, BLOCK_D).to(tl.float32)
    p_k = inputs.key + i_b * inputs.k_b + (i_h // inputs.group).to(tl.int64) * inputs.k_h
    i_row = (i_owner * by_key.q_tiles + tl.program_id(0) * BLOCK_M // TILE).to(tl.int64) * by_key.k_tiles
    for i in range(count):
        o_n = tl.load(p_index + o_row * count + i, mask=m_m, other=-1)
        m_n = (o_n >= 0) & (o_n < inputs.k_len)
        o_n = tl.where(m_n, o_n, 0)
        b_k = load_rows(p_k, o_n, m_n, inputs.k_n, D, BLOCK_D, False).to(tl.float32)
        b_s = bounded(tl.sum(b_q * b_k, 1), inputs)
        b_code = tl.load(by_key.code_of + i_row + o_n // TILE)
        m_s = seen(
            rules, i_b, i_owner, o_m[:, None], o_n[:, None], m_n[:, None], o_n[:, None], b_code[:, None],
            inputs.q_len, inputs.k_len, TILE,
        )  # fmt: skip
        b_s = tl.where(tl.max(m_s.to(tl.int32), 1) > 0, b_s, float("-inf"))
        tl.store(p_weight + o_row * count + i, tl.exp2(b_s - b_lse), mask=m_m)


@triton.jit
def load_keys(inputs, o_n, m_n, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return keys `o_n` of the head of axis 2 of the grid."""
    i_b = (tl.program_id(2) // inputs.heads).to(tl.int64)
    i_h = tl.program_id(2) % inputs.heads
    p_k = inputs.key + i_b * inputs.k_b + (i_h // inputs.group).to(tl.int64) * inputs.k_h
    return load_rows(p_k, o_n, m_n, inputs.k_n, D, BLOCK_D, False)


@triton.jit
def load_queries(inputs, i_bh, o_m, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return queries `o_m` of one head of one sequence."""
    i_b = (i_bh // inputs.heads).to(tl.int64)
    p_q = inputs.query + i_b * inputs.q_b + (i_bh % inputs.heads).to(tl.int64) * inputs.q_h
    return load_rows(p_q, o_m, o_m < inputs.q_len, inputs.q_m, D, BLOCK_D, False)


@triton.jit
def tiles_of_pool(by_key, i_b):
    """Return the first query tile of the pool of axis 1 of the grid, and the one after its last."""
    p_pool = by_key.pool_tiles + (i_b * tl.num_programs(1) + tl.program_id(1)) * 2
    return tl.load(p_pool), tl.load(p_pool + 1)


@triton.jit
def lse_in_pool(inputs, by_key, rules, p_lse, i_b, o_m):
    """Return log-sum-exps of queries times `log2(e)`: infinite, so that weights are 0, outside the pool."""
    m_m = o_m < inputs.q_len
    o_row = tl.program_id(2).to(tl.int64) * inputs.q_len + o_m
    b_lse = tl.load(p_lse + o_row, mask=m_m, other=float("-inf"))
    b_at = tl.load(rules.query_position + i_b * inputs.q_len + o_m, mask=m_m, other=-1)
    m_here = (b_lse > float("-inf")) & (b_at // by_key.pool == tl.program_id(1))
    return tl.where(m_here, b_lse * LOG2E, float("inf"))


@triton.jit
def place_of_sums(inputs):
    """Return where the sums of this head and pool begin, `[batch * heads, pools, k_len]`."""
    i_pool = tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    return i_pool * inputs.k_len
