"""Which keys each head kept, in the form the kernel was given."""

from __future__ import annotations

import numpy as np

from sparselens.workbench.probe import Columns, LayerRecord, Probe


def _rows(record: LayerRecord) -> Columns:
    heads = record.shown_heads
    encoded = record.selection.encode(record.call)
    density = record.selection.density(record.call)[0].expand(record.call.heads).float().numpy()
    if "density_computed" not in record.reuse:
        record.reuse["density_computed"] = (
            record.selection.density_computed(record.call)[0].expand(record.call.heads).float().numpy()
        )
    return {
        "layer": record.layer,
        "head": heads.astype(np.uint16),
        "kind": [encoded[head][0] for head in heads],
        "density": density[heads],
        "density_computed": record.reuse["density_computed"][heads],
        "data": [encoded[head][1] for head in heads],
    }


PROBE = Probe(
    name="selections",
    table="selections",
    meaning="per head: the kept keys as the kernel was given them",
    statistics=frozenset(),
    rows=_rows,
)
