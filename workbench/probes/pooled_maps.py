"""The attention map of each head, pooled to a picture: mean over a pool of queries of the mass on a pool of keys."""

from __future__ import annotations

import math

import numpy as np

from sparselens.storage.pooled import encode
from sparselens.workbench.probe import Columns, LayerRecord, Probe

CELLS = 64


def _rows(record: LayerRecord) -> Columns:
    heads = record.shown_heads
    maps = record.statistic("pooled").numpy()[heads]
    size = maps.shape[-1]
    return {
        "pattern": "executed",
        "layer": record.layer,
        "head": heads.astype(np.uint16),
        "pool": math.ceil(record.tokens / CELLS),
        "size": size,
        "data": encode(maps),
    }


PROBE = Probe(
    name="pooled_maps",
    table="pooled_maps",
    meaning=f"per head: the executed map pooled to at most {CELLS} × {CELLS} cells",
    statistics=frozenset({"pooled"}),
    rows=_rows,
)
