"""How much each token would write through a head if it were attended to alone: ‖W_O^h v‖."""

from __future__ import annotations

import numpy as np

from sparselens.workbench.probe import Columns, LayerRecord, Probe


def _rows(record: LayerRecord) -> Columns:
    heads = record.shown_heads
    value = record.call.value[0].repeat_interleave(record.call.group, dim=0)
    norms: np.ndarray = record.projection.norm(value).numpy()[heads]
    return {
        "layer": record.layer,
        "head": np.repeat(heads.astype(np.uint16), record.tokens),
        "pos": np.tile(np.arange(record.tokens, dtype=np.uint32), len(heads)),
        "value_write_norm": norms.reshape(-1),
    }


PROBE = Probe(
    name="value_norms",
    table="value_norms",
    meaning="per head and token: the norm of what its value writes through W_O",
    statistics=frozenset(),
    rows=_rows,
)
