"""Direct logit attribution: how much of the logit difference every sender writes itself, past all that reads it.

The last norm is linear once its scale is frozen at what it was in the clean pass; the parts of all senders and of the
biases then sum to the logit difference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparselens.analyses.circuit.patch import LogitDifference, Run
from sparselens.analyses.circuit.writes import precise
from sparselens.workbench.session import Session

_ROUNDINGS = 16
"""Roundings, of float32 or of what the model has, that the last norm's output may be off ours."""


@torch.no_grad()
def direct(run: Run) -> Tensor:
    """Return every sender's own part in the logit difference of the clean prompt: `[senders]` on the CPU.

    With `bias` they sum to it. Raises `ValueError` for another metric, `NotImplementedError` where logits are not
    linear in the last norm's output, or that norm is not a layer norm or RMS norm.
    """
    reader, _ = _reader(run)
    graph, clean, row = run.graph, run.clean, run.row
    found = clean.embedding.new_empty(len(graph.senders))
    found[0] = clean.embedding[row] @ reader
    for layer, places in enumerate(run.ports.layers):
        by_head = places.weight.to(reader) @ reader
        found[graph.writing(layer)] = (clean.z[layer, :, row] * by_head).sum(-1)
        found[graph.mlp_writing(layer)] = clean.mlps[layer, row] @ reader
    return found.cpu()


@torch.no_grad()
def bias(run: Run) -> float:
    """Return the part of the logit difference that no sender writes: biases of projections, last norm and head."""
    reader, constant = _reader(run)
    added = [places.out.bias for places in run.ports.layers if places.out.bias is not None]
    return float(constant + sum((precise(each) @ reader for each in added), reader.new_zeros(())))


def _reader(run: Run) -> tuple[Tensor, Tensor]:
    """Return the reader of a run's metric at its row."""
    metric = run.pair.metric
    if not isinstance(metric, LogitDifference):
        raise ValueError(f"direct attribution is of a LogitDifference, not of {type(metric).__name__}")
    return reader_at(run.session, run.ports.norm, run.clean.stream[run.row], metric)


def reader_at(session: Session, norm: Any, stream: Tensor, metric: LogitDifference) -> tuple[Tensor, Tensor]:
    """Return the vector that reads the logit difference from a stream `[d_model]`, and the constant beside it.

    `norm` is the last norm; its scale is frozen at that stream. Raises as `direct` does.
    """
    if getattr(session.text_config, "final_logit_softcapping", None) is not None:
        raise NotImplementedError("logits under a soft cap are not linear: no direct attribution")
    head = session.model.get_output_embeddings()
    right, wrong = list(metric.right), list(metric.wrong)
    reader = precise(head.weight[right]).mean(0) - precise(head.weight[wrong]).mean(0)
    added = getattr(head, "bias", None)
    constant = reader.new_zeros(())
    if added is not None:
        constant = constant + precise(added[right]).mean() - precise(added[wrong]).mean()
    gain, shift, scale, centred = _frozen(norm, stream)
    expected = precise(norm.forward(stream.to(session.dtype)[None]))[0]
    middle = stream - stream.mean() if centred else stream
    error = (gain * middle / scale + shift - expected).norm() / expected.norm()
    if float(error) > _ROUNDINGS * max(torch.finfo(session.dtype).eps, torch.finfo(torch.float32).eps):
        raise NotImplementedError(f"{type(norm).__name__} is neither a layer norm nor an RMS norm")
    constant = constant + shift @ reader
    reader = reader * gain / scale
    return (reader - reader.mean() if centred else reader), constant


def _frozen(norm: Any, stream: Tensor) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Return gain and shift `[d_model]`, the scale at a stream `[d_model]`, and whether the mean is taken off."""
    if isinstance(norm, torch.nn.LayerNorm):
        scale = (stream.var(correction=0) + norm.eps).sqrt()
        shift = torch.zeros_like(stream) if norm.bias is None else precise(norm.bias)
        return precise(norm.weight), shift, scale, True
    eps = float(getattr(norm, "variance_epsilon", getattr(norm, "eps", 0.0)))
    ones = torch.ones_like(stream)
    gain = precise(norm.forward(ones[None]))[0] * (1 + eps) ** 0.5
    return gain, torch.zeros_like(stream), (stream.square().mean() + eps).sqrt(), False
