"""What the host hands to the Triton kernels: named groups of pointers, strides and sizes. Imports no Triton.

A field that is None is known when a kernel is compiled; the code behind it is then left out.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

# The code of a tile. From 0 on: its place among the tiles that have bits.
FORMULA = -1  # the owner's band and stripes say what is kept
KEPT = -2  # everything is kept, the model's mask still says what is allowed
FULL = -3  # everything is kept and allowed
UNTOUCHED = -4  # not in the lists of tiles; what it keeps is loaded key by key


class Inputs(NamedTuple):
    """The tensors of a call, their strides (the last axis has stride 1), and its numbers."""

    query: Tensor
    key: Tensor
    value: Tensor
    sinks: Tensor | None
    q_b: int
    q_h: int
    q_m: int
    k_b: int
    k_h: int
    k_n: int
    v_b: int
    v_h: int
    v_n: int
    scale: float
    softcap: float | None
    heads: int
    group: int
    q_len: int
    k_len: int


class Rules(NamedTuple):
    """What says whether a pair is kept and allowed.

    `query_index` `[q_len]`, `key_index` `[k_len]`; positions and validity `[batch, q_len]`, `[batch, k_len]`.
    `form` int32 `[owners, 4]`: sink, window, row of the stripes or -1, reach. Of stripes: `columns` uint8
    `[rows, size]`, 1 at kept positions; `near` int64 `[rows, near_words]`, whose bit `key - query + size + 128`
    says that a diagonal reaches the pair; `key_shift` `[batch]`: a key's position less its place in the tensor.
    `bits` int64 `[tiles, tile, words]`: 64 keys a word, the first in the lowest bit.
    """

    query_index: Tensor
    key_index: Tensor
    query_position: Tensor
    key_position: Tensor
    query_valid: Tensor | None
    key_valid: Tensor | None
    window: int | None
    form: Tensor
    columns: Tensor | None
    near: Tensor | None
    key_shift: Tensor | None
    size: int
    near_words: int
    bits: Tensor | None
    words: int


class Lists(NamedTuple):
    """Which tiles each owner's query tiles touch: `…_start` `[owners * query tiles + 1]` into the lists.

    `owner` `[batch * heads]`; `code` of a partial tile as above; `column`: keys that are loaded one by one.
    """

    owner: Tensor
    q_tiles: int
    partial_start: Tensor
    partial_tile: Tensor
    partial_code: Tensor
    full_start: Tensor
    full_tile: Tensor
    column_start: Tensor | None
    column: Tensor | None


class Outputs(NamedTuple):
    """Where a block of queries writes: `[batch, heads, q_len]`, with one more axis for output and top.

    Without `output`, `lse` is read, and the top keys are what is asked for.
    """

    output: Tensor | None
    lse: Tensor
    entropy: Tensor | None
    sink_mass: Tensor | None
    previous_mass: Tensor | None
    local_mass: Tensor | None
    distance: Tensor | None
    top_weight: Tensor | None
    top_index: Tensor | None
    top: int
    local: int


class ByKey(NamedTuple):
    """Which query tiles touch each key tile, for the pass that sums over queries.

    `start` `[owners * key tiles * query tiles + 1]`: how many touched tiles come before a tile, in that order;
    `tile`, `code`: query tile and code of each. `code_of` `[owners, query tiles, key tiles]`: the code of every
    tile. `listed` `[owners, n_listed]`: the keys that some query tile loads one by one, -1 padded.
    `pool_tiles` `[batch, pools, 2]`: the query tiles (first, one after the last) of the rows of each pool.
    """

    owner: Tensor
    start: Tensor
    tile: Tensor
    code: Tensor
    code_of: Tensor
    listed: Tensor | None
    n_listed: int
    q_tiles: int
    k_tiles: int
    pool_tiles: Tensor
    pool: int


class KeyWork(NamedTuple):
    """The keys of a call of few queries: `kept` uint8 with its strides, and a list for each key-value head.

    `start` `[batch * kv_heads + 1]` into `key`; None where every key is read.
    """

    kept: Tensor
    b: int
    h: int
    m: int
    start: Tensor | None
    key: Tensor | None


class Parts(NamedTuple):
    """What each part of the keys gave: `[batch * kv_heads, parts, rows]`, `output` with one more axis."""

    output: Tensor
    total: Tensor
    high: Tensor
