"""The noise floor: the base against itself, computed by another kernel and in another dtype, on the run's prompts.

The same numbers as of a run against its base, by the same code: what a head writes by the capture's own recorder, and
each token's KL. A difference that is not above them says nothing about the policy.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparselens.kernels.kernel import Kernel
from sparselens.kernels.kernel import kernel as kernel_named
from sparselens.kernels.policy import Policy
from sparselens.workbench.heap import give_back
from sparselens.workbench.probe import probes
from sparselens.workbench.prompt import Prompt
from sparselens.workbench.readout import ROWS, Readout
from sparselens.workbench.recorder import Recorder, projections_of, watched
from sparselens.workbench.session import Session, attention_layers, decoder_layers, under
from sparselens.workbench.spool import Spool, spool

TOKENS = ("kl", "nll_change_abs", "top1_same")
"""Rows of `tokens` in a unit's numbers."""


@dataclass(eq=False)
class Floor:
    """Measures the base `policy` against itself. `numbers` gives a prompt's; `close` frees the model's copy."""

    session: Session
    policy: Policy
    kernel: Kernel
    _copy: Any = field(default=None, init=False)

    @property
    def other_kernel(self) -> Kernel:
        """The kernel to compare with: the reference, or the blocked one where the reference ran."""
        return kernel_named(other_kernel(self.kernel.name))

    @property
    def other_dtype(self) -> torch.dtype:
        """The dtype to compare with."""
        return dtype_named(other_dtype(str(self.session.dtype).removeprefix("torch.")))

    @cached_property
    def projections(self) -> Any:
        """What the heads write with, of the base: both sides are written with the same weights."""
        return projections_of(attention_layers(self.session.model), self.session.n_heads)

    @torch.no_grad()
    def numbers(self, prompt: Prompt, *, dtype: bool) -> dict[str, Any]:
        """Return `KIND write_error ROWS` `[layers, heads]` and `KIND tokens` `[3, tokens - 1]` of a prompt.

        KIND is `kernel`, and `dtype` where asked for.
        """
        model = self.session.model
        found: dict[str, Any] = {}
        with spool() as kept:
            base, _ = self._run(model, prompt, self.kernel, kept, is_base=True)
            states, errors = self._run(model, prompt, self.other_kernel, kept)
            readout = self.session.readout
            found |= self._compared("kernel", prompt, (readout, base), (readout, states), errors)
            if dtype:
                other = self._other_model()
                states, errors = self._run(other, prompt, self.kernel, kept)
                found |= self._compared("dtype", prompt, (readout, base), (Readout(other), states), errors)
        return found

    def _run(
        self, model: Any, prompt: Prompt, kernel: Kernel, kept: Spool, *, is_base: bool = False
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run a prompt; return the final hidden states `[tokens, d_model]` and, by rows, the heads' write error."""
        blocks: list[Mapping[str, Any]] = []
        recorder = Recorder(
            prompt=prompt,
            policy=self.policy,
            kernel=kernel,
            probes=[] if is_base else [probes()["diffs"]],
            projections=self.projections,
            spool=kept,
            write=None if is_base else lambda _, columns: blocks.append(columns),
            is_base=is_base,
            run_name="",
            base_name="",
        )
        ids = torch.tensor([prompt.token_ids], device=self.session.device)
        with ExitStack() as stack:
            stack.enter_context(watched(recorder, decoder_layers(model), attention_layers(model)))
            stack.enter_context(under(model, self.policy, kernel=kernel, observers=[recorder]))
            states = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0]
        return states, self._errors(blocks)

    def _errors(self, blocks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return `write_error` as it ran, by rows: `[layers, heads]`."""
        found: dict[str, Any] = {}
        for block in blocks:
            as_it_ran = block["scope"] == "end_to_end"
            for name in np.unique(block["rows"][as_it_ran].astype(str)):
                chosen = as_it_ran & (block["rows"] == name)
                shape = (self.session.n_layers, self.session.n_heads)
                target = found.setdefault(str(name), np.full(shape, np.nan))
                target[block["layer"][chosen], block["head"][chosen]] = block["write_error"][chosen]
        return found

    def _compared(
        self,
        kind: str,
        prompt: Prompt,
        base: tuple[Readout, Tensor],
        other: tuple[Readout, Tensor],
        errors: Mapping[str, Any],
    ) -> dict[str, Any]:
        ids = torch.tensor(prompt.token_ids, device=self.session.device)
        numbers = {f"{kind} write_error {rows}": values for rows, values in errors.items()}
        return {f"{kind} tokens": token_changes(base, other, ids), **numbers}

    def _other_model(self) -> Any:
        """Return a copy of the model in the other dtype, made at the first use.

        Parameters alone are converted, as when a checkpoint is loaded in that dtype: the rotary frequencies stay as
        they are.
        """
        if self._copy is None:
            self._copy = copy.deepcopy(self.session.model)
            for parameter in self._copy.parameters():
                if parameter.is_floating_point():
                    parameter.data = parameter.data.to(self.other_dtype)
            give_back()
        return self._copy

    def close(self) -> None:
        """Free the copy of the model."""
        self._copy = None
        give_back()


def other_kernel(name: str) -> str:
    """Return the kernel that a floor compares `name` with."""
    return "blocked" if name == "reference" else "reference"


def other_dtype(name: str) -> str:
    """Return the dtype that a floor compares `name` with."""
    return "float32" if name in ("bfloat16", "float16") else "bfloat16"


def dtype_named(name: str) -> torch.dtype:
    """Return torch's dtype of that name."""
    found: torch.dtype = getattr(torch, name)
    return found


def token_changes(base: tuple[Readout, Tensor], other: tuple[Readout, Tensor], ids: Tensor) -> Any:
    """Return KL(base ‖ other), |change of −ln p| (nats) and whether the most probable token is the same.

    `[3, tokens - 1]`: of the tokens from position 1 on. Each side is a readout and the hidden states it reads
    `[tokens, d_model]`; in chunks of rows, so that no tokens × vocabulary matrix is held.
    """
    last = len(ids) - 1
    found: Any = np.zeros((3, last))
    for start in range(0, last, ROWS):
        rows = slice(start, min(start + ROWS, last))
        before, after = (_log_probabilities(readout, states[rows]) for readout, states in (base, other))
        target = ids[start + 1 : rows.stop + 1, None]
        change = before.gather(-1, target) - after.gather(-1, target)
        found[0, rows] = torch.linalg.vecdot(before.exp(), before - after).clamp(min=0).cpu().numpy()
        found[1, rows] = change[:, 0].abs().cpu().numpy()
        found[2, rows] = (before.argmax(-1) == after.argmax(-1)).cpu().numpy()
    return found


def _log_probabilities(readout: Readout, states: Tensor) -> Tensor:
    logits = readout.logits(states)
    return logits.sub_(torch.logsumexp(logits, -1, keepdim=True))
