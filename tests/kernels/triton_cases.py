"""Calls, selections and the comparison with float64 for the Triton kernel's checks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.kernel import Attended
from sparselens.kernels.reference import Reference
from sparselens.kernels.selection import (
    Band,
    Bits,
    Everything,
    Groups,
    KeyList,
    Mixture,
    Selection,
    Stripes,
    Tiles,
    Union,
)
from sparselens.kernels.statistics import NAMES, Want, weights_at
from sparselens.kernels.triton_kernel import Triton

from .conftest import difference, make_call, random_tiles

REFERENCE = Reference()
TILES = Triton(tile=16, few=0)  # the tile kernel, also for few queries
LISTS = Triton(few=64, splits=3)  # the kernel of key lists, also for many


def selections(call: AttentionCall, block: int = 16) -> dict[str, Selection]:
    """One of each kind, and of each granularity that meets the kernel's tiles differently."""
    heads, q_len, k_len = call.heads, call.q_len, call.k_len
    some = tuple(range(0, heads, 2))
    rest = tuple(range(1, heads, 2))
    columns = torch.randint(0, k_len, (1, heads, 5))
    stripes = Stripes(columns, torch.randint(0, k_len, (1, heads, 2)))
    groups = torch.randint(-1, 3, (1, heads, q_len)), torch.randint(-1, 3, (1, 1, k_len))
    whole = Tiles(torch.rand(1, 1, -(-k_len // 32), -(-k_len // 32)) < 0.7, 32, 32)
    return {
        "everything": Everything(),
        "band": Band(2, 9),
        "window": Band(0, 21),
        "tiles": Tiles(random_tiles(k_len, heads, block), block, block),
        "larger tiles": whole,
        "odd tiles": Tiles(random_tiles(k_len, 1, 12), 12, 12),
        "stripes": stripes,
        "stripes of tiles": Stripes(columns[:, :1], torch.randint(0, k_len, (1, 1, 2)), tile=8),
        "keys": KeyList(torch.randint(-1, k_len, (call.batch, heads, q_len, 6), dtype=torch.int32)),
        "bits": Bits.of(torch.rand(1, heads, q_len, k_len) < 0.3),
        "mixture": Mixture([(some, Band(1, 11)), (rest, Everything())]) if rest else Everything(),
        "mixture of kinds": Mixture([(some, stripes.of_heads(torch.tensor(some))), (rest, Band(3, 4))])
        if rest
        else stripes,
        "union": Union((Band(1, 3), stripes)),
        "union with bits": Union((Band(0, 2), Bits.of(torch.rand(1, 1, q_len, k_len) < 0.1))),
        "groups": Groups(*groups, torch.rand(1, heads, 3, 3) < 0.5),
        "nothing": Bits.of(torch.zeros(1, 1, q_len, k_len, dtype=torch.bool)),
    }


def double(call: AttentionCall) -> AttentionCall:
    """The call in float64, of the same rounded tensors."""
    tensors = {name: getattr(call, name).double() for name in ("query", "key", "value")}
    return replace(call, **tensors)


def weight_error(call: AttentionCall) -> float:
    """How far rounding may move a weight, as a share of it.

    A score is a sum of head_dim products, scaled and exponentiated in float32; each step rounds a number no
    larger than |q| |k| scale. The log-sum-exp carries as much again.
    """
    norms = (
        torch.linalg.vector_norm(call.query.double(), dim=-1).max(),
        (torch.linalg.vector_norm(call.key.double(), dim=-1).max()),
    )
    largest = float(norms[0] * norms[1]) * call.scale
    return 2 * torch.finfo(torch.float32).eps * (call.head_dim / 2 + 4) * (1 + largest)


def check(kernel: Triton, call: AttentionCall, selection: Selection, want: Want) -> Attended:
    """Compare output, log-sum-exp and every statistic with float64; return what the kernel gave."""
    found = kernel.attend(call, selection, want)
    truth = REFERENCE.attend(double(call), selection, want)
    share, eps = weight_error(call), torch.finfo(call.query.dtype).eps
    largest = float(call.value.abs().max())
    # weights move by `share`; they and the output are rounded to the type of the tensors
    assert difference(found.output, truth.output) <= (share + eps) * largest
    assert found.output.dtype == call.query.dtype
    assert difference(found.lse, truth.lse) <= share
    assert found.lse.dtype == torch.float32
    assert set(found.statistics) == set(truth.statistics)
    for name, value in truth.statistics.items():
        assert found.statistics[name].shape == value.shape, name
        assert found.statistics[name].dtype == value.dtype, name
        if name != "top_index":
            size = {"distance": call.k_len, "entropy": 1 + float(value.abs().max())}.get(name, 1)
            size = float(value.max().clamp(min=1)) if name == "received" else size
            assert difference(found.statistics[name], value) <= share * size, name
    if "top" in want.names:
        index, weight = found.statistics["top_index"], found.statistics["top_weight"]
        assert difference(weights_at(call, found.lse, index), weight) <= share
        assert torch.equal(index < 0, weight == 0)
        ordered = index.long().sort(-1).values
        assert not bool(((ordered.diff(dim=-1) == 0) & (ordered[..., 1:] >= 0)).any())
    return found


def all_statistics(call: AttentionCall, **sizes: int) -> Want:
    gather = torch.randint(-1, call.k_len, (call.batch, call.heads, call.q_len, 2))
    return Want(NAMES, gather=gather, **{"top": 3, "local": 5, "cells": 2} | sizes)


CALLS: list[dict[str, Any]] = [
    {"length": 37, "heads": 2, "kv_heads": 1},
    {"length": 33, "heads": 2, "kv_heads": 2, "head_dim": 12, "window": 20},
    {"length": 40, "heads": 2, "kv_heads": 1, "pads": [(0, 0), (7, 2)]},
    {"length": 50, "heads": 3, "kv_heads": 1, "q_len": 19, "softcap": 4.0, "sinks": True},
    {"length": 31, "heads": 2, "kv_heads": 1, "dtype": torch.bfloat16, "head_dim": 20},
    {"length": 48, "heads": 2, "kv_heads": 1, "dtype": torch.float16, "sinks": True, "window": 30},
]
KINDS = list(selections(make_call(8, 2, 1)))
