"""From final hidden states to predictions, in chunks of rows so that no tokens × vocabulary matrix is ever held."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROWS = 64


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a run predicted at every position 1 … tokens; numpy, `[tokens]`.

    `nll[i]` (nats) of the token at position i + 1; NaN at the last, where no token follows. `kl[i]` is
    KL(base ‖ run) of that distribution, zero for the base.
    """

    nll: np.ndarray
    top1_id: np.ndarray
    top1_p: np.ndarray
    kl: np.ndarray
    nll_change: np.ndarray
    top1_same: np.ndarray


class Readout:
    """The output head of an HF causal language model, applied to final hidden states.

    Raises `NotImplementedError` on construction if the head does not reproduce the model's own logits: some
    architectures do more between the last norm and the logits than we know of.
    """

    def __init__(self, model: Any) -> None:
        self._head = model.get_output_embeddings()
        self._cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        self._check(model)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float32 logits `[rows, vocabulary]` of `hidden [rows, d_model]`."""
        logits: Tensor = self._head(hidden).float()
        if self._cap is not None:
            logits = torch.tanh(logits / self._cap) * self._cap
        return logits

    @torch.no_grad()
    def _check(self, model: Any) -> None:
        ids = torch.arange(4, 12, device=next(model.parameters()).device)[None]
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        expected = model(input_ids=ids, use_cache=False).logits.float()
        ours = self.logits(hidden[0])[None]
        if not torch.allclose(ours, expected, rtol=1e-3, atol=1e-3):
            raise NotImplementedError(
                f"{type(model).__name__} does more between the last hidden state and the logits than its output"
                " embedding and a soft cap; captures of it are not supported"
            )

    @torch.no_grad()
    def read(self, hidden: Mapping[str, Tensor], ids: Tensor, base: str | None) -> dict[str, Predictions]:
        """Return the predictions of every run from its final hidden states `[tokens, d_model]`.

        `ids [tokens]`; `base` names the run that the others are compared with, None where nothing is compared.
        """
        tokens = len(ids)
        found = {name: [] for name in hidden}  # type: dict[str, list[tuple[Tensor, ...]]]
        for start in range(0, tokens, ROWS):
            rows = slice(start, min(start + ROWS, tokens))
            target = torch.nn.functional.pad(ids[start + 1 : rows.stop + 1], (0, rows.stop - start))[: rows.stop - start]
            reference = None if base is None else self._log_probabilities(hidden[base][rows])
            for name, states in hidden.items():
                logp = reference if name == base and reference is not None else self._log_probabilities(states[rows])
                found[name].append(_summary(logp, target, reference, same=name == base))
        return {name: _predictions(parts, tokens) for name, parts in found.items()}

    def _log_probabilities(self, hidden: Tensor) -> Tensor:
        logits = self.logits(hidden)
        return logits.sub_(torch.logsumexp(logits, -1, keepdim=True))


def _summary(logp: Tensor, target: Tensor, reference: Tensor | None, *, same: bool) -> tuple[Tensor, ...]:
    nll = -logp.gather(-1, target[:, None])[:, 0]
    best, top1 = logp.max(-1)
    if reference is None or same:
        zero = torch.zeros_like(nll)
        return nll, top1, best.exp(), zero, zero, torch.ones_like(top1, dtype=torch.bool)
    weights = reference.exp()
    kl = (weights * (reference - logp)).sum(-1).clamp(min=0)
    change = nll + reference.gather(-1, target[:, None])[:, 0]
    return nll, top1, best.exp(), kl, change, top1 == reference.argmax(-1)


def _predictions(parts: list[tuple[Tensor, ...]], tokens: int) -> Predictions:
    nll, top1, top1_p, kl, change, same = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    nll = nll.copy()
    nll[tokens - 1] = np.nan
    return Predictions(nll, top1.astype(np.uint32), top1_p, kl, change, same)
