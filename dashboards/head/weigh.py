"""Attention or what it carries: weights of keys as they are, or times what each key's value would write.

What a head adds to a row is Σ p(k) · W_O^h v(k), so p(k) · ‖W_O^h v(k)‖ is the size of one key's part (Kobayashi et al.
2020, "Attention is Not Only a Weight", https://arxiv.org/abs/2004.10102: norm-based analysis). Parts may cancel: their
sizes do not sum to the size of what is written.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sparselens.dashboards.query import Source, SourceError
from sparselens.dashboards.selection import Selection

Floats: TypeAlias = NDArray[np.float64]

VALUE = "value"
NORMS = """
SELECT pos, value_write_norm FROM value_norms
WHERE run_id = $run AND prompt_id = $prompt AND layer = $layer AND head = $head ORDER BY pos
"""
NOT_IMPORTANCE = "Attention weight is not importance"
DEFINITION = (
    "A head writes the sum over keys of p · W_O v. “By value” shows p · ‖W_O v‖, the size of one key's part, as a "
    "share of the row's sum of these sizes (Kobayashi et al. 2020, “Attention is Not Only a Weight”, arXiv 2004.10102: "
    "norm-based analysis). A sink often has a large weight and a small value. Neither is importance: parts can cancel, "
    "and what later layers use is not in them. What a head is worth is tested by restoring or ablating it."
)


class MissingNormsError(SourceError):
    """‖W_O v‖ of a head is not in the trace."""


def norms(source: Source, run: str, selection: Selection, length: int) -> Floats:
    """‖W_O^h v‖ of every key of the prompt under a run, `[length]`; MissingNormsError unless all are stored."""
    at = {name: getattr(selection, name) for name in ("prompt", "layer", "head")}
    found = source.frame(NORMS, run=run, **at)
    if len(found) < length or found["pos"].iloc[-1] != len(found) - 1 or found.isna().to_numpy().any():
        raise MissingNormsError(
            f"‖W_O v‖ of {selection.head_name} is not stored for this prompt and run (table value_norms). A capture "
            "stores it of every head and layer that it records: capture again without --heads and --layers, or with "
            f"--heads {selection.head_name}."
        )
    return np.asarray(found["value_write_norm"].to_numpy(dtype=np.float64)[:length])


def weighed(rows: Floats, norm: Floats) -> Floats:
    """Rows of attention `[rows, keys]` as shares of p · ‖W_O v‖, `norm [keys]`; rows without any stay 0."""
    sizes = np.nan_to_num(rows) * norm[None, : rows.shape[1]]
    total = sizes.sum(axis=1, keepdims=True)
    return np.asarray(np.where(np.isnan(rows), np.nan, sizes / np.where(total > 0, total, 1.0)))
