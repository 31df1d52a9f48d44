"""One layer computed once more from its record, and a whole model under recorded masks: what `verify` compares with.

Arithmetic of its own: nothing from `kernels/`. Causality and native windows come from indices and the HF module, what
is kept and added to scores from the recorded selection alone.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from sparselens.storage.mask import bias_rows, keep_rows
from sparselens.workbench.bridge import steered
from sparselens.workbench.session import implementation

_REPLAY = "sparselens_replay"
_CHANGING = ("biased", "spliced")  # kinds of selections that may add to scores


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer's call, as far as a recomputation needs it: tensors without batch, and the recorded selection."""

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    softcap: float | None
    sinks: Tensor | None
    recorded: list[tuple[str, bytes]]

    def keep(self, start: int, stop: int) -> np.ndarray:
        """Return the recorded selection's rows: bool `[heads, rows, tokens]`."""
        tokens = self.key.shape[1]
        packed = [data for _, data in self.recorded]
        heads = packed[:1] if all(data == packed[0] for data in packed) else packed
        masks: np.ndarray = np.stack([keep_rows(data, start, stop, tokens, causal=False) for data in heads])
        return masks

    def bias(self, start: int, stop: int) -> np.ndarray | None:
        """Return what the recorded selection adds to scores, float64 `[heads, rows, tokens]`; None where nothing."""
        tokens = self.key.shape[1]
        found = [
            bias_rows(data, start, stop, tokens) if kind in _CHANGING else None
            for kind, data in self.recorded
        ]
        if all(part is None for part in found):
            return None
        rows: np.ndarray = np.stack(
            [np.zeros((stop - start, tokens)) if part is None else part for part in found]
        )
        return rows


def _runs(rows: Tensor) -> list[tuple[int, int]]:
    """Return the runs [start, stop) of consecutive numbers in sorted `rows`."""
    breaks = (rows.diff() != 1).nonzero()[:, 0] + 1
    return [(int(run[0]), int(run[-1]) + 1) for run in torch.tensor_split(rows, breaks)]


def recomputed(seen: Layer, rows: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
    """Return attention `[heads, rows, width]` of `rows` under causality, native window and recorded selection."""
    group = seen.query.shape[0] // seen.key.shape[0]
    key = seen.key.to(dtype).repeat_interleave(group, dim=0)
    value = seen.value.to(dtype).repeat_interleave(group, dim=0)
    keep = torch.from_numpy(np.concatenate([seen.keep(*run) for run in _runs(rows)], axis=1))
    added = [_bias_of(seen, *run, dtype) for run in _runs(rows)]
    bias = None if all(part is None for part in added) else _joined(seen, rows, added, dtype)
    seen_keys = keep & _causal(rows, key.shape[1], window)
    return _attend(seen.query[:, rows].to(dtype), key, value, seen, seen_keys, bias)


def _bias_of(seen: Layer, start: int, stop: int, dtype: torch.dtype) -> Tensor | None:
    bias = seen.bias(start, stop)
    return None if bias is None else torch.from_numpy(bias).to(dtype)


def _joined(seen: Layer, rows: Tensor, added: list[Tensor | None], dtype: torch.dtype) -> Tensor:
    """Return the bias of all runs of rows as one `[heads, rows, tokens]`."""
    shape = (seen.query.shape[0], seen.key.shape[1])
    parts = [
        torch.zeros(shape[0], stop - start, shape[1], dtype=dtype) if part is None else part
        for (start, stop), part in zip(_runs(rows), added, strict=True)
    ]
    return torch.cat(parts, 1)


def rounding(seen: Layer, rows: Tensor, exact: Tensor, dtype: torch.dtype) -> float:
    """Return how far one rounding of every score may move an output: ε · (1 + largest |score|) · largest |output|.

    A kernel that writes weights as exp(score − lse) rounds both to the spacing of numbers of their size; that moves a
    weight by a relative ε · |score|.
    """
    query_norm = torch.linalg.vector_norm(seen.query[:, rows].double(), dim=-1).max()
    key_norm = torch.linalg.vector_norm(seen.key.double(), dim=-1).max()
    largest = float(query_norm * key_norm) * seen.scale
    if seen.softcap is not None:
        largest = min(largest, seen.softcap)
    return torch.finfo(dtype).eps * (1 + largest) * float(exact.abs().max())


def _causal(rows: Tensor, tokens: int, window: int | None) -> Tensor:
    distance = rows[:, None] - torch.arange(tokens)
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, seen: Layer, keep: Tensor, bias: Tensor | None = None
) -> Tensor:
    scores = query @ key.transpose(1, 2) * seen.scale
    if seen.softcap is not None:
        scores = torch.tanh(scores / seen.softcap) * seen.softcap
    scores = (scores if bias is None else scores + bias).masked_fill(~keep, -torch.inf)
    if seen.sinks is None:
        return torch.softmax(scores, -1).nan_to_num(0.0) @ value
    sink = seen.sinks.to(scores.dtype)[:, None, None].expand(-1, scores.shape[1], 1)
    return torch.softmax(torch.cat([scores, sink], -1), -1)[..., :-1] @ value


@torch.no_grad()
def replayed(model: Any, ids: Tensor, layers: dict[int, Layer], *, explicit: bool) -> Tensor:
    """Return the final hidden states `[tokens, d_model]` of the bare HF model under the recorded masks.

    With `explicit` the softmax is written out, else torch's fused attention runs: the distance of the two is the
    model's own noise floor.
    """

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
    ) -> tuple[Tensor, None]:
        del mask
        seen = layers[int(module.layer_idx)]
        tokens = key.shape[2]
        now = Layer(query[0], key[0], value[0], seen.scale, seen.softcap, seen.sinks, seen.recorded)
        output = torch.empty_like(query)
        group = query.shape[1] // key.shape[1]
        keys, values = (tensor.repeat_interleave(group, dim=1) for tensor in (key, value))
        for start in range(0, tokens, 512):
            rows = torch.arange(start, min(start + 512, tokens))
            keep = torch.from_numpy(now.keep(start, int(rows[-1]) + 1))
            keep = keep & _causal(rows, tokens, options.get("sliding_window"))
            part, bias = query[:, :, rows], _bias_of(now, start, int(rows[-1]) + 1, query.dtype)
            if explicit or bias is not None or seen.softcap is not None or seen.sinks is not None:
                output[0, :, rows] = _attend(part[0], keys[0], values[0], now, keep, bias)
            else:
                output[:, :, rows] = torch.nn.functional.scaled_dot_product_attention(
                    part, keys, values, attn_mask=keep[None], scale=seen.scale
                )
        return output.transpose(1, 2), None

    AttentionInterface.register(_REPLAY, attention)
    AttentionMaskInterface.register(_REPLAY, lambda *_, **__: None)
    with ExitStack() as stack:
        stack.enter_context(steered(model))
        stack.enter_context(implementation(model, _REPLAY))
        states: Tensor = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0]
    return states
