"""Per layer and token: the attention that the token received."""

from __future__ import annotations

import numpy as np
import torch

from sparselens.workbench.probe import Columns, LayerRecord, Probe


def _rows(record: LayerRecord) -> Columns:
    received = record.statistic("received")
    if record.heads is not None:
        received = received[list(record.heads)]
    return {
        "layer": record.layer,
        "pos": np.arange(record.tokens, dtype=np.uint32),
        "received_mass": (received.mean(0) / _viewers(record)).numpy(),
        "resid_norm": record.reuse.pop("resid_norm", None),
    }


def _viewers(record: LayerRecord) -> torch.Tensor:
    """Return how many queries can see each key: `[tokens]`."""
    allowed = record.call.allowed
    if allowed.is_plain_causal:
        return torch.arange(record.tokens, 0, -1)
    total = torch.zeros(record.tokens)
    for start, stop in record.call.row_blocks():
        total += allowed.rows(start, stop)[0, 0].sum(0)
    return total.clamp(min=1)


PROBE = Probe(
    name="token_stats",
    table="token_stats",
    meaning="per layer and token: residual norm before the layer, attention received (mean over heads)",
    statistics=frozenset({"received"}),
    rows=_rows,
)
