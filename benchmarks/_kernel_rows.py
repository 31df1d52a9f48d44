"""What `benchmarks/kernels.py` times: a call, and a selection of each kind on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from sparselens.kernels.call import Allowed, AttentionCall
from sparselens.kernels.policy import Memory, parse
from sparselens.kernels.selection import Band, Everything, Groups, KeyList, Selection, Stripes, Tiles, Union

HEADS, KV_HEADS, HEAD_DIM, BLOCK = 9, 3, 64, 128
FLOOR = 1 / 1.3  # what scatters over all tiles, and full density: at most 1.3 × causal SDPA


@dataclass
class Row:
    """A selection to be timed.

    `by`: what its limit counts, `tiles` of 128 or `pairs` of a query and a key. `ratio`, `speed_up`: what the project
    wants of it; None = nothing. `flex`: whether FlexAttention is measured beside it.
    """

    name: str
    policy: str
    by: str
    ratio: float | None
    speed_up: float | None
    flex: bool
    selection: Selection
    select_ms: float


def make_call(tokens: int, seed: int = 0) -> AttentionCall:
    """A causal prefill with normal queries, keys and values."""
    made = torch.Generator().manual_seed(seed)
    index = torch.arange(tokens)
    shapes = [(1, heads, tokens, HEAD_DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    query, key, value = (torch.randn(shape, generator=made) for shape in shapes)
    return AttentionCall(query, key, value, index[None], index[None], Allowed(index, index), HEAD_DIM**-0.5)


def rows_of(call: AttentionCall) -> list[Row]:
    """The rows of the table, their selections made and timed."""
    narrow = f"sliding_window(window={call.q_len // 16 + 1})"
    wide = f"sliding_window(window={call.q_len * 9 // 32 + 1})"
    stripes = "vertical_slash(vertical=64,slash=128)"
    policies: list[tuple[str, str, str, float | None, float | None, bool]] = [
        ("narrow band", narrow, "tiles", 0.8, None, True),
        ("wide band", wide, "tiles", 0.8, None, True),
        ("maps, 17 %", "random(density=0.17,granularity=block)", "tiles", 0.7, None, True),
        ("maps, 50 %", "random(density=0.5,granularity=block)", "tiles", 0.7, None, True),
        ("maps of 64, 17 %", "random(density=0.17,granularity=block,block=64)", "pairs", None, None, True),
        (
            "narrow band, 1 of 9 heads full",
            f"per_head(default={narrow},full=[L0H0])",
            "tiles",
            0.7,
            None,
            False,
        ),
        ("wide band, 1 of 9 heads full", f"per_head(default={wide},full=[L0H0])", "tiles", 0.7, None, False),
        ("stripes, 64 and 128", stripes, "pairs", 0.6, None, True),
        ("stripes, 256 and 160", "vertical_slash(vertical=256,slash=160)", "pairs", 0.6, None, True),
        ("stripes, 1 of 9 heads full", f"per_head(default={stripes},full=[L0H0])", "pairs", 0.6, None, False),
        (
            "stripes, exact diagonals",
            "vertical_slash(vertical=64,slash=128,tile=0)",
            "pairs",
            None,
            FLOOR,
            False,
        ),
        ("64 best keys a row", "oracle_topk(k=64)", "pairs", None, FLOOR, False),
        ("10 % of the keys at random", "random(density=0.1)", "pairs", None, FLOOR, False),
    ]
    small, rows = make_call(BLOCK), []
    for name, text, by, ratio, speed_up, flex in policies:
        parse(text).select(small, Memory())  # loads what the first use of an operation loads
        start = time.process_time()
        selection = parse(text).select(call, Memory())
        spent = (time.process_time() - start) * 1e3
        rows.append(Row(name, text, by, ratio, speed_up, flex, selection, spent))
    for name, said, made in MADE:
        full = name.startswith("full")
        by, speed_up = ("tiles" if full else "pairs"), (FLOOR if full else None)
        rows.append(Row(name, said, by, None, speed_up, False, made(call.q_len), 0.0))
    return rows


def _draw(high: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(high))


def _common_keys(tokens: int) -> Selection:
    common = _draw(tokens, 1, HEADS, 1, 48).expand(-1, -1, tokens, -1)
    near = (torch.arange(tokens)[:, None] - torch.arange(16)).clamp(min=-1).expand(1, HEADS, -1, -1)
    return KeyList(torch.cat([common, near], -1).int())


def _clusters(tokens: int) -> Selection:
    groups = [_draw(tokens // 64, 1, HEADS, tokens) for _ in range(2)]
    return Groups(*groups, torch.eye(tokens // 64, dtype=torch.bool)[None, None])


def _band_and_columns(tokens: int) -> Selection:
    return Union((Band(4, 128), Stripes(_draw(tokens, 1, HEADS, 64), torch.full((1, 1, 1), -1))))


def _all_tiles(tokens: int) -> Selection:
    n = -(-tokens // BLOCK)
    return Tiles(torch.ones(1, 1, n, n, dtype=torch.bool), BLOCK, BLOCK)


MADE: list[tuple[str, str, Callable[[int], Selection]]] = [
    ("48 common keys and the last 16", "a list of keys a row", _common_keys),
    ("a band and 64 columns", "a union", _band_and_columns),
    ("clusters of 64", "groups of scattered queries and keys", _clusters),
    ("full density, tiles", "all tiles", _all_tiles),
    ("full density, everything", "dense", lambda tokens: Everything()),
]
