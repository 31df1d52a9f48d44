"""Per-head means over the rows that matter, of the executed and of the dense pattern."""

from __future__ import annotations

import numpy as np
import torch

from sparselens.workbench.probe import SINK_ROWS, Columns, LayerRecord, Probe, head_names, mean_over

_PLAIN = ("entropy", "local_mass", "distance")


def _rows(record: LayerRecord) -> Columns:
    patterns = [("executed", False)] + ([("dense", True)] if record.sparse else [])
    blocks = [
        _block(record, pattern, rows_name, rows, dense=dense)
        for pattern, dense in patterns
        for rows_name, rows in record.row_sets
    ]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _block(record: LayerRecord, pattern: str, rows_name: str, rows: torch.Tensor, *, dense: bool) -> Columns:
    heads = record.shown_heads
    counts = record.visible_counts.expand_as(record.kept_counts) if dense else record.kept_counts
    entropy = record.statistic("entropy", dense=dense)
    positions = record.call.query_positions[0]
    values = {name: mean_over(rows, record.statistic(name, dense=dense)) for name in _PLAIN}
    values["entropy_norm"] = mean_over(rows & (counts > 1), entropy / counts.clamp(min=2).log())
    values["previous_mass"] = mean_over(
        rows & (positions >= 1), record.statistic("previous_mass", dense=dense)
    )
    values["sink_mass"] = mean_over(
        rows & (positions >= SINK_ROWS), record.statistic("sink_mass", dense=dense)
    )
    kept = (rows * record.kept_counts).sum(-1)
    seen = (rows * record.visible_counts).sum(-1)
    values["density"] = torch.ones_like(values["entropy"]) if dense else (kept / seen).float()
    values["kv_read_share"] = _read_share(record, rows, dense=dense)
    if not dense:
        values["kept_mass"] = mean_over(rows, record.kept_mass)
        values["kept_mass_nosink"] = mean_over(rows, record.kept_mass_nosink)
        values["write_norm"] = mean_over(rows, record.write_norm)
    columns: Columns = {name: value.numpy()[heads] for name, value in values.items()}
    if dense:
        columns |= {
            name: np.full(len(heads), np.nan, np.float32)
            for name in ("kept_mass", "kept_mass_nosink", "write_norm")
        }
    computed = np.ones(len(heads), np.float32) if dense else _computed(record)
    return columns | {
        "pattern": np.full(len(heads), pattern, object),
        "rows": np.full(len(heads), rows_name, object),
        "layer": np.full(len(heads), record.layer, np.uint8),
        "head": heads.astype(np.uint16),
        "head_name": np.asarray(head_names(record.layer, heads), object),
        "n_rows": rows.sum(-1).numpy()[heads].astype(np.uint32),
        "density_computed": computed,
    }


def _read_share(record: LayerRecord, rows: torch.Tensor, *, dense: bool) -> torch.Tensor:
    """Return, over the decoded rows among `rows`, keys read by any head of the group ÷ keys there: `[heads]`."""
    start = record.tokens - record.decoded
    chosen, there = rows[:, start:], record.visible_counts[start:]
    read = there.expand_as(chosen) if dense else record.read_counts
    return ((chosen * read).sum(-1) / (chosen * there).sum(-1)).float()


def _computed(record: LayerRecord) -> np.ndarray:
    """Share of tiles that the kernel touched, for each shown head (over the whole prompt, whatever the rows)."""
    if "density_computed" not in record.reuse:
        density = record.selection.density_computed(record.call)[0].expand(record.call.heads)
        record.reuse["density_computed"] = density.float().numpy()
    computed: np.ndarray = record.reuse["density_computed"][record.shown_heads]
    return computed


PROBE = Probe(
    name="head_stats",
    table="head_stats",
    meaning="per head: entropy, sink, previous and local mass, distance, density, kept mass, write norm",
    statistics=frozenset({"entropy", "sink_mass", "previous_mass", "local_mass", "distance"}),
    rows=_rows,
)
