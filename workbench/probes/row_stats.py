"""Per-row numbers of the executed pattern: what each query's attention was like, and what of it is not stored."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparselens.workbench.probe import Columns, LayerRecord, Probe
from sparselens.workbench.probes.edges import stored_mass


def _rows(record: LayerRecord) -> Columns:
    heads = record.shown_heads
    error = record.write_error

    def flat(values: Any) -> Any:
        return values[heads].reshape(-1)

    columns: Columns = {
        "pattern": "executed",
        "layer": record.layer,
        "head": np.repeat(heads.astype(np.uint16), record.tokens),
        "q_pos": np.tile(np.arange(record.tokens, dtype=np.uint32), len(heads)),
        "entropy": flat(record.statistic("entropy").numpy()),
        "lse": flat(record.executed.lse[0].numpy()),
        "sink_mass": flat(record.statistic("sink_mass").numpy()),
        "kept_mass": flat(record.kept_mass.numpy()),
        "unstored_mass": flat(1.0 - stored_mass(record)),
    }
    if error is not None:
        columns["write_error"] = flat(error.numpy())
    return columns


PROBE = Probe(
    name="row_stats",
    table="row_stats",
    meaning="per query row: entropy, log-sum-exp, sink mass, kept mass, unstored mass, write error",
    statistics=frozenset({"entropy", "sink_mass", "top"}),
    rows=_rows,
)
