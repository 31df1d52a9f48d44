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

    @classmethod
    def empty(cls, tokens: int) -> Predictions:
        """Return arrays to be filled; without change against a base."""

        def zeros() -> np.ndarray:
            made: np.ndarray = np.zeros(tokens, np.float32)
            return made

        ids: np.ndarray = np.zeros(tokens, np.uint32)
        return cls(zeros(), ids, zeros(), zeros(), zeros(), np.ones(tokens, bool))


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
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
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
        found = {name: Predictions.empty(tokens) for name in hidden}
        for start in range(0, tokens, ROWS):
            rows = slice(start, min(start + ROWS, tokens))
            target = ids[start + 1 : rows.stop + 1]
            target = torch.nn.functional.pad(target, (0, rows.stop - start - len(target)))
            reference = None if base is None else _Reference.of(self._log_probabilities(hidden[base][rows]))
            for name, states in hidden.items():
                if reference is not None and name == base:
                    _fill(found[name], rows, reference.logp, target, None)
                else:
                    _fill(found[name], rows, self._log_probabilities(states[rows]), target, reference)
        for predictions in found.values():
            predictions.nll[tokens - 1 :] = np.nan
        return found

    def _log_probabilities(self, hidden: Tensor) -> Tensor:
        logits = self.logits(hidden)
        return logits.sub_(torch.logsumexp(logits, -1, keepdim=True))


@dataclass(frozen=True, eq=False)
class _Reference:
    """The base's distributions of some rows: log-probabilities and probabilities `[rows, vocabulary]`, the best."""

    logp: Tensor
    weights: Tensor
    best: Tensor

    @classmethod
    def of(cls, logp: Tensor) -> _Reference:
        """Return the reference of log-probabilities."""
        return cls(logp, logp.exp(), logp.argmax(-1))


def _fill(
    found: Predictions, rows: slice, logp: Tensor, target: Tensor, reference: _Reference | None
) -> None:
    """Write what `logp [rows, vocabulary]` predicts into the arrays of the run.

    Into arrays made beforehand: a few numbers kept of every chunk, allocated between its large temporaries, would
    leave holes in the heap that no later chunk fits into (measured: 0.9 GB at 2,048 tokens).
    """
    nll = -logp.gather(-1, target[:, None])[:, 0]
    best, top1 = logp.max(-1)
    found.nll[rows], found.top1_id[rows], found.top1_p[rows] = _arrays(nll, top1, best.exp())
    if reference is not None:
        kl = torch.linalg.vecdot(reference.weights, reference.logp - logp).clamp(min=0)
        change = nll + reference.logp.gather(-1, target[:, None])[:, 0]
        found.kl[rows], found.nll_change[rows] = _arrays(kl, change)
        (found.top1_same[rows],) = _arrays(top1 == reference.best)


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.cpu().numpy() for tensor in tensors]
