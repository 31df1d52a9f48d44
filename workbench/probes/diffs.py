"""How a run differs from its base, per head, in three scopes that are never mixed.

`end_to_end`: as it ran. `local_mask`: the run's actual selection on the base's queries, keys and values.
`local_policy`: the policy asked again on the base's queries and keys. Changes are run − base. Where a policy changes
scores too, the local scopes have no `js`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sparselens.kernels.kernel import Attended, Want
from sparselens.kernels.policy import Memory
from sparselens.kernels.selection import Selection
from sparselens.kernels.statistics import kept_mass, restriction_js
from sparselens.kernels.walk import chosen
from sparselens.workbench.probe import (
    SINK_ROWS,
    Columns,
    LayerRecord,
    Probe,
    means_over,
    span_rows,
    without_sink,
)
from sparselens.workbench.spool import BaseLayer

JS_ROWS = 64
"""End-to-end Jensen-Shannon needs both whole patterns; it is computed on spans of at most this many rows."""


@dataclass(frozen=True, eq=False)
class _Scope:
    """One scope of one layer: per-row tensors `[heads, tokens]`.

    `divergence` is one too where it is known of every row; else `js` maps names of row sets to `[heads]` means and to
    how many rows they are of.
    """

    name: str
    error: Tensor
    cosine: Tensor
    kept_mass: Tensor
    kept_mass_nosink: Tensor
    overlap: Tensor
    sink: Tensor
    entropy: Tensor
    divergence: Tensor | None = None
    js: dict[str, tuple[Tensor, int]] = field(default_factory=dict)


def _rows(record: LayerRecord) -> Columns | None:
    base = record.base
    if base is None:
        return None
    scopes = [_end_to_end(record, base)]
    if record.sparse:
        mask = _local(record, base, "local_mask", record.selection)
        scopes += [mask, _local_policy(record, base, mask)]
    blocks = [_block(record, base, scope) for scope in scopes]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _end_to_end(record: LayerRecord, base: BaseLayer) -> _Scope:
    top = record.statistic("top_index")
    same = (top[..., :, None] == base.top_index[..., None, :]) & (base.top_index[..., None, :] >= 0)
    listed = (base.top_index >= 0).sum(-1).clamp(min=1)
    js = {}
    for name in record.prompt.spans:
        start, stop = span_rows(record.prompt, name)
        if 0 < stop - start <= JS_ROWS:
            js[f"span:{name}"] = (_pattern_js(record, base, start, stop), stop - start)
    error, cosine = _written(record, base, record.z)
    return _Scope(
        name="end_to_end",
        error=error,
        cosine=cosine,
        kept_mass=record.kept_mass,
        kept_mass_nosink=record.kept_mass_nosink,
        overlap=same.any(-1).sum(-1) / listed,
        sink=record.statistic("sink_mass"),
        entropy=record.statistic("entropy"),
        js=js,
    )


def _written(record: LayerRecord, base: BaseLayer, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return `write_error` and the cosine of what the head writes, per row, of outputs `z` against the base's.

    With G the Gram matrix of W_O^h and d = z − z_a: ‖W d‖² = dᵀGd, and ⟨W z, W z_a⟩, ‖W z‖² follow from dᵀG and
    ‖W z_a‖², so that a small difference is not lost in the difference of two large norms.
    """
    change = z - base.z
    through = change @ record.projection.gram
    squared = (through * change).sum(-1).clamp_min(0)
    along = (through * base.z).sum(-1)
    if "base_squared" not in record.reuse:
        record.reuse["base_squared"] = record.projection.inner(base.z, base.z).clamp_min(0)
    before = record.reuse["base_squared"]
    norms = (before * (before + 2 * along + squared).clamp_min(0)).sqrt()
    cosine = torch.where(norms > 0, (before + along) / norms, torch.ones_like(norms)).clamp(-1.0, 1.0)
    return squared.sqrt() / base.output_norm, cosine


def _pattern_js(record: LayerRecord, base: BaseLayer, start: int, stop: int) -> Tensor:
    """Return the mean Jensen-Shannon divergence (nats) of executed and base patterns over rows: `[heads]`."""
    dropped = ~record.selection.kept(record.call, start, stop)
    scores, bias = record.call.scores(start, stop), record.selection.bias_rows(record.call, start, stop)
    scores = (scores if bias is None else scores + bias).masked_fill(dropped, -torch.inf)
    ours = torch.softmax(scores, -1)[0].nan_to_num(0.0)
    theirs = torch.softmax(record.base_call.scores(start, stop), -1)[0]
    middle = (ours + theirs) / 2
    entropy = torch.special.entr
    divergence: Tensor = (entropy(middle) - (entropy(ours) + entropy(theirs)) / 2).sum(-1).mean(-1)
    return divergence


def _local(record: LayerRecord, base: BaseLayer, name: str, selection: Selection) -> _Scope:
    """Run `selection` on the base's queries, keys and values."""
    want = Want(frozenset({"entropy", "sink_mass", "gathered"}), gather=base.top_index[None])
    attended: Attended = record.kernel.attend(record.base_call, selection, want)
    lse = attended.lse
    if selection.biased:
        lse = record.kernel.attend(record.base_call, selection.unbiased()).lse
    mass = kept_mass(record.base_call, lse, base.lse[None])[0]
    sink = attended.statistics["sink_mass"][0]
    listed = (base.top_index >= 0).sum(-1).clamp(min=1)
    divergence = torch.full_like(mass, torch.nan) if selection.biased else restriction_js(mass)
    error, cosine = _written(record, base, attended.output[0])
    return _Scope(
        name=name,
        error=error,
        cosine=cosine,
        kept_mass=mass,
        kept_mass_nosink=without_sink(mass, sink, base.sink_mass),
        overlap=(attended.statistics["gathered"][0] > 0).sum(-1) / listed,
        sink=sink,
        entropy=attended.statistics["entropy"][0],
        divergence=divergence,
    )


def _local_policy(record: LayerRecord, base: BaseLayer, mask: _Scope) -> _Scope:
    """Ask the policy again on the base's tensors; a static one answers the same, so its numbers are copied."""
    from dataclasses import replace

    policy, memory = record.reuse["policy"], record.reuse.setdefault("local_memory", Memory())
    if not policy.reads_tensors and not record.selection.biased:
        return replace(mask, name="local_policy")
    selection = chosen(policy, record.base_call, memory, record.decoded or None)
    return _local(record, base, "local_policy", selection)


def _block(record: LayerRecord, base: BaseLayer, scope: _Scope) -> Columns:
    """Columns of one scope: the shown heads over the first set of rows, then over the next."""
    heads = record.shown_heads
    names, sets = [name for name, _ in record.row_sets], torch.stack([rows for _, rows in record.row_sets])
    n_rows = sets.sum(-1)
    found = _means(record, base, scope, sets)
    js_rows = n_rows
    if scope.divergence is None:
        unknown = torch.full((record.call.heads,), torch.nan)
        sampled = [scope.js.get(name, (unknown, 0)) for name in names]
        found["js"] = torch.stack([mean for mean, _ in sampled])
        js_rows = torch.tensor([count for _, count in sampled])[:, None].expand_as(n_rows)
    size = len(names) * len(heads)
    columns: Columns = {name: value.numpy()[:, heads].reshape(-1) for name, value in found.items()}
    counts = {"n_rows": n_rows, "js_rows": js_rows}
    columns |= {name: each.numpy()[:, heads].reshape(-1).astype(np.uint32) for name, each in counts.items()}
    return columns | {
        "scope": np.full(size, scope.name, object),
        "rows": np.repeat(np.asarray(names, object), len(heads)),
        "layer": np.full(size, record.layer, np.uint8),
        "head": np.tile(heads.astype(np.uint16), len(names)),
        "run_a": np.full(size, record.base_name, object),
        "run_b": np.full(size, record.run_name, object),
    }


def _means(record: LayerRecord, base: BaseLayer, scope: _Scope, sets: Tensor) -> dict[str, Tensor]:
    """Means over each set of rows, `[sets, heads]` by name; `sink_change` is not of the first rows."""
    values = {
        "write_error": scope.error,
        "kept_mass": scope.kept_mass,
        "kept_mass_nosink": scope.kept_mass_nosink,
        "top8_overlap": scope.overlap,
        "out_cosine": scope.cosine,
        "sink_change": scope.sink - base.sink_mass,
        "entropy_change": scope.entropy - base.entropy,
    }
    if scope.divergence is not None:
        values["js"] = scope.divergence
    later = (record.call.query_positions[0] >= SINK_ROWS).expand_as(scope.error)
    among = torch.stack([later if name == "sink_change" else torch.ones_like(later) for name in values])
    means = means_over(sets, torch.stack(list(values.values())), among)
    return dict(zip(values, means.unbind(1), strict=True))


PROBE = Probe(
    name="diffs",
    table="diffs",
    meaning="per head against the base: write error, kept mass, JS, top-8 overlap, cosine, sink and entropy change",
    statistics=frozenset({"entropy", "sink_mass", "top"}),
    rows=_rows,
)
