"""The strongest edges of every row: the union of what this run read and what the base read, so that a cut is a row.

Stored are the top keys of the executed pattern and of the base's pattern whose probability reaches `MIN_P` in the
pattern that put them there; `row_stats.unstored_mass` says how much executed mass that leaves out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparselens.storage.rows import Coded
from sparselens.workbench.probe import Columns, LayerRecord, Probe

TOP = 8
MIN_P = 0.01
_CELLS = 1 << 14


@dataclass(frozen=True, eq=False)
class Edges:
    """Edges of one layer, flat and sorted by head and row: equal-length tensors."""

    head: Tensor
    query: Tensor
    key: Tensor
    weight: Tensor
    base_weight: Tensor | None
    from_run: Tensor
    from_base: Tensor


def edges_of(record: LayerRecord) -> Edges:
    """Return the layer's edges; computed once a layer."""
    if "edges" not in record.reuse:
        record.reuse["edges"] = _own_edges(record) if record.base is None else _union(record)
    edges: Edges = record.reuse["edges"]
    return edges


def stored_mass(record: LayerRecord) -> np.ndarray:
    """Return the executed mass that `edges` holds of each row: `[heads, tokens]`."""
    edges = edges_of(record)
    flat = torch.zeros(record.call.heads * record.tokens)
    flat.index_add_(0, edges.head * record.tokens + edges.query, edges.weight)
    mass: np.ndarray = flat.view(record.call.heads, record.tokens).clamp(0.0, 1.0).numpy()
    return mass


def _own_edges(record: LayerRecord) -> Edges:
    index, weight = record.statistic("top_index"), record.statistic("top_weight")
    head, query, slot = ((index >= 0) & (weight >= MIN_P)).nonzero(as_tuple=True)
    yes = torch.ones(len(head), dtype=torch.bool)
    return Edges(
        head,
        query,
        index[head, query, slot],
        weight[head, query, slot],
        None,
        from_run=yes,
        from_base=~yes,
    )


def _union(record: LayerRecord) -> Edges:
    """Return the run's own edges and the base's, each key once, with both probabilities."""
    base = record.base
    if base is None:
        raise ValueError("the base run has no base")
    own = _own_edges(record)
    index, base_weight = base.top_index, base.top_weight
    gathered = record.statistic("gathered")

    known = index[own.head, own.query] == own.key[:, None]
    in_base = known.any(-1)
    from_top = torch.where(known, base_weight[own.head, own.query], 0.0).sum(-1)
    own_base_weight = torch.where(in_base, from_top, 0.0)
    missing = ~in_base
    own_base_weight[missing] = _base_weights(record, own.head[missing], own.query[missing], own.key[missing])

    strong = (index >= 0) & (base_weight >= MIN_P)
    head, query, slot = strong.nonzero(as_tuple=True)
    key = index[head, query, slot]
    top = record.statistic("top_index")
    own_listed = (record.statistic("top_weight") >= MIN_P) & (top >= 0)
    repeated = ((top[head, query] == key[:, None]) & own_listed[head, query]).any(-1)
    only = ~repeated
    head, query, slot, key = head[only], query[only], slot[only], key[only]

    own_strong = torch.where(in_base, from_top >= MIN_P, own_base_weight >= MIN_P)
    joined = Edges(
        torch.cat([own.head, head]),
        torch.cat([own.query, query]),
        torch.cat([own.key, key]),
        torch.cat([own.weight, gathered[head, query, slot]]),
        torch.cat([own_base_weight, base_weight[head, query, slot]]),
        from_run=torch.cat([own.from_run, torch.zeros(len(head), dtype=torch.bool)]),
        from_base=torch.cat([in_base & own_strong, torch.ones(len(head), dtype=torch.bool)]),
    )
    order = torch.argsort(joined.head * record.tokens + joined.query, stable=True)
    return Edges(*(getattr(joined, name)[order] for name in Edges.__dataclass_fields__))


def _base_weights(record: LayerRecord, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Return the base's probability at single (head, query, key) cells."""
    call, base = record.base_call, record.base
    if base is None or not len(head):
        return torch.zeros(len(head))
    weights = []
    for start in range(0, len(head), _CELLS):
        part = slice(start, start + _CELLS)
        row, column = query[part], key[part].long()
        scores = (call.query[0, head[part], row] * call.key[0, head[part] // call.group, column]).sum(
            -1
        ) * call.scale
        if call.softcap is not None:
            scores = torch.tanh(scores / call.softcap) * call.softcap
        weights.append((scores - base.lse[head[part], row]).exp())
    return torch.cat(weights)


_REASONS = ("run", "base", "both")


def _rows(record: LayerRecord) -> Columns:
    edges = edges_of(record)
    shown = (
        torch.isin(edges.head, torch.as_tensor(record.shown_heads))
        if record.heads is not None
        else slice(None)
    )
    weight = edges.weight[shown]
    base_weight = None if edges.base_weight is None else edges.base_weight[shown]
    own, theirs = edges.from_run[shown], edges.from_base[shown]
    reason = torch.where(own, torch.where(theirs, 2, 0), 1).int().numpy()
    columns: Columns = {
        "layer": record.layer,
        "head": edges.head[shown].numpy().astype(np.uint16),
        "q_pos": edges.query[shown].numpy().astype(np.uint32),
        "k_pos": edges.key[shown].numpy().astype(np.uint32),
        "p": weight.numpy(),
        "p_base": (weight if base_weight is None else base_weight).numpy(),
        "kept": (weight > 0).numpy(),
        "reason": Coded(reason, _REASONS),
    }
    return columns


PROBE = Probe(
    name="edges",
    table="edges",
    meaning=f"top-{TOP} keys of each row of the run and of the base, with p ≥ {MIN_P} in either",
    statistics=frozenset({"top"}),
    rows=_rows,
)
