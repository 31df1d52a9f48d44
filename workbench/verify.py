"""Three checks that what was recorded is what ran, made with arithmetic of its own (`recomputation.py`).

`verify_kernel`: what entered the output projection, against a float64 recomputation under the recorded selection.
`verify_logits`: the bare HF model with the recorded masks, on sampled prompts. `verify_calls`: kernel calls =
layers × forward passes. Causality and native windows come from indices and the HF module, not from the call's mask.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.kernel import Attended
from sparselens.kernels.policy import Policy
from sparselens.kernels.selection import Selection
from sparselens.kernels.statistics import NOTHING, Want
from sparselens.workbench.bridge import joint
from sparselens.workbench.execution import Execution
from sparselens.workbench.projection import output_linear
from sparselens.workbench.prompt import Prompt
from sparselens.workbench.readout import Readout
from sparselens.workbench.recomputation import Layer, recomputed, replayed, rounding
from sparselens.workbench.session import Session

ROWS = 128
"""Rows of each layer that are recomputed (all of them in shorter prompts)."""
LOGIT_ROWS = 128
EVERY = 16
"""One prompt in this many, the first included, is replayed through the bare model."""
NLL = 1e-3
"""Largest difference (nats) of a replayed loss in float32; wider only by the model's own noise floor."""
_EDGES = (64, 128)
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
    _layers: dict[int, Layer] = field(default_factory=dict)
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
        self._layers[call.layer] = Layer(
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

    def _check_rows(self, seen: Layer, entered: Tensor, window: int | None) -> None:
        rows = sampled_rows(entered.shape[1])
        exact = recomputed(seen, rows, window, torch.float64)
        honest = recomputed(seen, rows, window, entered.dtype).double()
        allowed = 2 * float((honest - exact).abs().max()) + rounding(seen, rows, exact, entered.dtype)
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
        fused = replayed(self.session.model, ids, self._layers, explicit=False)
        explicit = replayed(self.session.model, ids, self._layers, explicit=True)
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
