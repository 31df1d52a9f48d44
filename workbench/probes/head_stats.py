"""Per-head means over the rows that matter, of the executed and of the dense pattern."""

from __future__ import annotations

import numpy as np
import torch

from sparselens.workbench.probe import SINK_ROWS, Columns, LayerRecord, Probe, head_names, means_over

_PLAIN = ("entropy", "local_mass", "distance")
_OF_KEPT = ("kept_mass", "kept_mass_nosink", "write_norm")
"""Of the executed pattern alone."""


def _rows(record: LayerRecord) -> Columns:
    patterns = [("executed", False)] + ([("dense", True)] if record.sparse else [])
    blocks = [_block(record, pattern, dense=dense) for pattern, dense in patterns]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _block(record: LayerRecord, pattern: str, *, dense: bool) -> Columns:
    """Columns of one pattern: the shown heads over the first set of rows, then over the next."""
    heads = record.shown_heads
    names, sets = [name for name, _ in record.row_sets], torch.stack([rows for _, rows in record.row_sets])
    found = _means(record, sets, dense=dense)
    kept = (sets * record.kept_counts).sum(-1)
    seen = (sets * record.visible_counts).sum(-1)
    found["density"] = torch.ones(kept.shape) if dense else (kept / seen).float()
    found["kv_read_share"] = _read_share(record, sets, dense=dense)
    size = len(names) * len(heads)
    columns: Columns = {name: value.numpy()[:, heads].reshape(-1) for name, value in found.items()}
    if dense:
        columns |= {name: np.full(size, np.nan, np.float32) for name in _OF_KEPT}
    computed = np.ones(len(heads), np.float32) if dense else _computed(record)
    return columns | {
        "pattern": np.full(size, pattern, object),
        "rows": np.repeat(np.asarray(names, object), len(heads)),
        "layer": np.full(size, record.layer, np.uint8),
        "head": np.tile(heads.astype(np.uint16), len(names)),
        "head_name": np.tile(np.asarray(head_names(record.layer, heads), object), len(names)),
        "n_rows": sets.sum(-1).numpy()[:, heads].reshape(-1).astype(np.uint32),
        "density_computed": np.tile(computed, len(names)),
    }


def _means(record: LayerRecord, sets: torch.Tensor, *, dense: bool) -> dict[str, torch.Tensor]:
    """Means over each set of rows, `[sets, heads]` by name; some are not of the first rows, or of rows of one key."""
    counts = record.visible_counts.expand_as(record.kept_counts) if dense else record.kept_counts
    positions = record.call.query_positions[0]
    values = {name: record.statistic(name, dense=dense) for name in _PLAIN}
    values["entropy_norm"] = values["entropy"] / counts.clamp(min=2).log()
    values |= {name: record.statistic(name, dense=dense) for name in ("previous_mass", "sink_mass")}
    if not dense:
        values |= {name: getattr(record, name) for name in _OF_KEPT}
    counted = {
        "entropy_norm": counts > 1,
        "previous_mass": positions >= 1,
        "sink_mass": positions >= SINK_ROWS,
    }
    everywhere = torch.ones_like(counts, dtype=torch.bool)
    among = torch.stack([counted.get(name, everywhere).expand_as(everywhere) for name in values])
    means = means_over(sets, torch.stack(list(values.values())), among)
    return dict(zip(values, means.unbind(1), strict=True))


def _read_share(record: LayerRecord, sets: torch.Tensor, *, dense: bool) -> torch.Tensor:
    """Return, over the decoded rows of each set, keys read by any head of the group ÷ keys there: `[sets, heads]`."""
    start = record.tokens - record.decoded
    chosen, there = sets[..., start:], record.visible_counts[start:]
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
