"""Three checks that what was recorded is what ran, made with arithmetic of its own (nothing from `kernels/`).

`verify_kernel`: what entered the output projection, against a float64 recomputation under the recorded selection.
`verify_logits`: the bare HF model with the recorded masks, on sampled prompts. `verify_calls`: kernel calls =
layers × forward passes. Causality and native windows come from indices and the HF module, not from the call's mask.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.kernel import Attended
from sparselens.kernels.policy import Policy
from sparselens.kernels.selection import Selection
from sparselens.kernels.statistics import NOTHING, Want
from sparselens.storage.mask import bias_rows, keep_rows
from sparselens.workbench.bridge import joint, steered
from sparselens.workbench.execution import Execution
from sparselens.workbench.projection import output_linear
from sparselens.workbench.prompt import Prompt
from sparselens.workbench.readout import Readout
from sparselens.workbench.session import Session, implementation

ROWS = 128
"""Rows of each layer that are recomputed (all of them in shorter prompts)."""
LOGIT_ROWS = 128
EVERY = 16
"""One prompt in this many, the first included, is replayed through the bare model."""
NLL = 1e-3
"""Largest difference (nats) of a replayed loss in float32; wider only by the model's own noise floor."""
_REPLAY = "sparselens_replay"
_EDGES = (64, 128)
_CHANGING = ("biased", "spliced")  # kinds of selections that may add to scores
_RUN = 8  # drawn rows come in runs: a recorded mask is decoded once a run


@dataclass(frozen=True)
class Verdict:
    """What the checks found: True, False, or None where a check could not be made; `detail` has the numbers."""

    kernel: bool | None
    logits: bool | None
    calls: bool | None
    detail: dict[str, Any]

    @property
    def failed(self) -> list[str]:
        """The checks that failed."""
        checks = {"verify_kernel": self.kernel, "verify_logits": self.logits, "verify_calls": self.calls}
        return [name for name, passed in checks.items() if passed is False]

    def columns(self) -> dict[str, Any]:
        """Return the fields of a run record."""
        return {
            "verify_kernel": self.kernel,
            "verify_logits": self.logits,
            "verify_calls": self.calls,
            "verify_detail": self.detail,
        }

    def __str__(self) -> str:
        passed = [self.kernel, self.logits, self.calls].count(True)
        why = f" ({', '.join(self.failed)} failed)" if self.failed else ""
        return f"verified {passed}/3{why}"


@dataclass(frozen=True, eq=False)
class _Layer:
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


@dataclass(eq=False)
class Verifier:
    """Checks a run as an `Observer`; one for each run, one `start` … `finish` for each prompt."""

    reads_bias: ClassVar[bool] = True

    session: Session
    worst_kernel: float = 0.0
    kernel_checks: int = 0
    calls: int = 0
    expected_calls: int = 0
    logit_checks: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _prompts: int = 0
    _prompt: Prompt | None = None
    _layers: dict[int, _Layer] = field(default_factory=dict)
    _replaying: bool = False

    def start(self, prompt: Prompt, policy: Policy) -> None:
        """Begin a prompt."""
        del policy
        self._prompt, self._layers = prompt, {}
        self._replaying = self._prompts % EVERY == 0

    def want(self, call: AttentionCall) -> Want:
        """Return no statistics."""
        del call
        return NOTHING

    def saw(self, call: AttentionCall, selection: Selection, attended: Attended) -> None:
        """Keep what the recomputation needs of this layer."""
        del attended
        self._layers[call.layer] = _Layer(
            call.query[0],
            call.key[0],
            call.value[0],
            call.scale,
            call.softcap,
            call.sinks,
            selection.encode(call),
        )

    @contextmanager
    def listening(self, attentions: Sequence[Any]) -> Iterator[None]:
        """Check what enters each output projection while the block lasts."""
        handles = [
            output_linear(module).register_forward_pre_hook(self._entered(layer, module))
            for layer, module in enumerate(attentions)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _entered(self, layer: int, module: Any) -> Any:
        def look(_: Any, args: tuple[Any, ...]) -> None:
            seen = self._layers[layer]
            heads, tokens, width = seen.query.shape[0], seen.query.shape[1], seen.value.shape[-1]
            entered = args[0][0].reshape(tokens, heads, width).transpose(0, 1)
            self._check_rows(seen, entered, getattr(module, "sliding_window", None))
            if not self._replaying:
                self._layers[layer] = None  # type: ignore[assignment]

        return look

    def _check_rows(self, seen: _Layer, entered: Tensor, window: int | None) -> None:
        rows = sampled_rows(entered.shape[1])
        exact = _recompute(seen, rows, window, torch.float64)
        honest = _recompute(seen, rows, window, entered.dtype).double()
        allowed = 2 * float((honest - exact).abs().max()) + _rounding(seen, rows, exact, entered.dtype)
        error = float((entered[:, rows].double() - exact).abs().max())
        self.worst_kernel = max(self.worst_kernel, float("inf") if math.isnan(error) else error / allowed)
        self.kernel_checks += len(rows)

    def finish(self, execution: Execution, hidden: Tensor, readout: Readout) -> None:
        """End a prompt: count the calls, and replay sampled prompts through the bare model."""
        self.calls += execution.calls
        self.expected_calls += execution.n_layers
        if self._replaying:
            self._check_logits(hidden, readout)
        self._prompts += 1
        self._layers = {}

    def _check_logits(self, hidden: Tensor, readout: Readout) -> None:
        if self._prompt is None:
            raise RuntimeError("finish() before start()")
        if joint(self.session.model):
            self.notes.append("logits not checked: the bridge of this model computes attention itself")
            return
        ids = torch.tensor([self._prompt.token_ids], device=self.session.device)
        fused = _replay(self.session.model, ids, self._layers, explicit=False)
        explicit = _replay(self.session.model, ids, self._layers, explicit=True)
        rows = sampled_rows(len(hidden), LOGIT_ROWS)
        rows = rows[rows < len(hidden) - 1]
        target = ids[0][rows + 1]
        ours, first, second = (readout.logits(states[rows]) for states in (hidden, fused, explicit))
        loss = [
            torch.nn.functional.cross_entropy(logits, target, reduction="none")
            for logits in (ours, first, second)
        ]
        self.logit_checks.append(
            {
                "logits": float((ours - first).abs().max()),
                "logits_floor": float((first - second).abs().max()),
                "nll": float((loss[0] - loss[1]).abs().max()),
                "nll_floor": float((loss[1] - loss[2]).abs().max()),
            }
        )

    def verdict(self) -> Verdict:
        """Return what was found over all prompts."""
        logits: bool | None = None
        if self.logit_checks:
            logits = all(
                check["nll"] <= max(NLL, 4 * check["nll_floor"])
                and check["logits"] <= 4 * check["logits_floor"] + NLL
                for check in self.logit_checks
            )
        return Verdict(
            kernel=self.worst_kernel <= 1.0 if self.kernel_checks else None,
            logits=logits,
            calls=self.calls == self.expected_calls if self._prompts else None,
            detail={
                "kernel_error_over_allowed": self.worst_kernel,
                "kernel_rows": self.kernel_checks,
                "calls": self.calls,
                "expected_calls": self.expected_calls,
                "logit_checks": self.logit_checks,
                "notes": self.notes,
            },
        )


def sampled_rows(tokens: int, count: int = ROWS) -> Tensor:
    """Return at least `count` row indices (all, in shorter prompts): first, last, block edges, and a fixed draw."""
    if tokens <= count:
        return torch.arange(tokens)
    edges = {edge for block in _EDGES for edge in range(block, tokens, block)}
    few = sorted(edges)[:: max(1, len(edges) // 12)]
    generator = torch.Generator().manual_seed(tokens)
    drawn = (torch.randperm(tokens // _RUN, generator=generator)[: count // _RUN] * _RUN).tolist()
    rows = {0, 1, tokens - 2, tokens - 1}
    rows |= {row for edge in few for row in (edge - 1, edge)}
    rows |= {row for start in drawn for row in range(start, start + _RUN)}
    return torch.tensor(sorted(rows))


def _runs(rows: Tensor) -> list[tuple[int, int]]:
    """Return the runs [start, stop) of consecutive numbers in sorted `rows`."""
    breaks = (rows.diff() != 1).nonzero()[:, 0] + 1
    return [(int(run[0]), int(run[-1]) + 1) for run in torch.tensor_split(rows, breaks)]


def _recompute(seen: _Layer, rows: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
    """Return attention `[heads, rows, width]` of `rows` under causality, native window and recorded selection."""
    group = seen.query.shape[0] // seen.key.shape[0]
    key = seen.key.to(dtype).repeat_interleave(group, dim=0)
    value = seen.value.to(dtype).repeat_interleave(group, dim=0)
    keep = torch.from_numpy(np.concatenate([seen.keep(*run) for run in _runs(rows)], axis=1))
    added = [_bias_of(seen, *run, dtype) for run in _runs(rows)]
    bias = None if all(part is None for part in added) else _joined(seen, rows, added, dtype)
    seen_keys = keep & _causal(rows, key.shape[1], window)
    return _attend(seen.query[:, rows].to(dtype), key, value, seen, seen_keys, bias)


def _bias_of(seen: _Layer, start: int, stop: int, dtype: torch.dtype) -> Tensor | None:
    bias = seen.bias(start, stop)
    return None if bias is None else torch.from_numpy(bias).to(dtype)


def _joined(seen: _Layer, rows: Tensor, added: list[Tensor | None], dtype: torch.dtype) -> Tensor:
    """Return the bias of all runs of rows as one `[heads, rows, tokens]`."""
    shape = (seen.query.shape[0], seen.key.shape[1])
    parts = [
        torch.zeros(shape[0], stop - start, shape[1], dtype=dtype) if part is None else part
        for (start, stop), part in zip(_runs(rows), added, strict=True)
    ]
    return torch.cat(parts, 1)


def _rounding(seen: _Layer, rows: Tensor, exact: Tensor, dtype: torch.dtype) -> float:
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
    query: Tensor, key: Tensor, value: Tensor, seen: _Layer, keep: Tensor, bias: Tensor | None = None
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
def _replay(model: Any, ids: Tensor, layers: dict[int, _Layer], *, explicit: bool) -> Tensor:
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
        now = _Layer(query[0], key[0], value[0], seen.scale, seen.softcap, seen.sinks, seen.recorded)
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
