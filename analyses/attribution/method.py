"""Attribution of an answer to the tokens before it, by Captum: integrated gradients and token ablation.

Both run the model that is steered by `under(...)`, so the policy's kernel is what answers and what is differentiated.
The selection is chosen anew at every forward pass and is a constant in gradients (`kernels/gradient.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sparselens.workbench.readout import Readout
from sparselens.workbench.session import Session

QUADRATURE = "gausslegendre"
Target = Callable[[Tensor], Tensor]


def checked(session: Session) -> Readout:
    """Return the output head; to be called once before a policy acts, since it is checked on the bare model."""
    return session.readout


def logits_after(session: Session, ids: Tensor) -> Tensor:
    """Return float32 logits `[batch, vocabulary]` of the token after `ids [batch, tokens]`."""
    hidden = session.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    return session.readout.logits(hidden[:, -1])


def log_probability(session: Session, answer: int, ran: Callable[[int], None] | None = None) -> Target:
    """Return the function `ids [batch, tokens]` → log-probability `[batch]` of the token `answer` after them.

    The head runs on that one row. `ran` is told the tokens of each forward pass.
    """

    def target(ids: Tensor) -> Tensor:
        found = torch.log_softmax(logits_after(session, ids), -1)[:, answer]
        if ran is not None:
            ran(ids.numel())
        return found

    return target


@contextmanager
def frozen(session: Session) -> Iterator[None]:
    """Keep the weights out of the gradient while the block lasts: nothing is saved for them."""
    trained = [each for each in session.model.parameters() if each.requires_grad]
    try:
        for each in trained:
            each.requires_grad_(False)
        yield
    finally:
        for each in trained:
            each.requires_grad_(True)


def integrated_gradients(
    session: Session, target: Target, ids: Tensor, baseline: Tensor, *, steps: int, batch: int
) -> Tensor:
    """Return the attribution `[tokens]` of each input embedding, summed over its dimensions, signs kept.

    Along the straight line from the embeddings of `baseline [1, tokens]` to those of `ids`, by Gauss-Legendre
    quadrature (Sundararajan et al., arXiv 1703.01365). The sum is `target(ids) − target(baseline)` up to the error
    of the quadrature; where both have the same token it is exactly 0.
    """
    from captum.attr import LayerIntegratedGradients

    method: Any = LayerIntegratedGradients(target, session.model.get_input_embeddings())
    with frozen(session):
        found = method.attribute(
            ids, baselines=baseline, n_steps=steps, method=QUADRATURE, internal_batch_size=batch
        )
    attributed: Tensor = found[0].detach().sum(-1).float().cpu()
    return attributed


def ablation(target: Target, ids: Tensor, token: int, chosen: Sequence[bool], *, batch: int) -> Tensor:
    """Return `target(ids) − target(ids with token in its place)` of each chosen token: `[tokens]`, 0 at the others.

    Forward passes only, `batch` at a time.
    """
    from captum.attr import FeatureAblation

    where = torch.tensor(chosen, device=ids.device)[None]
    baseline = torch.where(where, token, ids)
    features = torch.where(where, where.cumsum(-1), 0)  # all others are feature 0: run again, unchanged
    method: Any = FeatureAblation(target)
    found = method.attribute(ids, baselines=baseline, feature_mask=features, perturbations_per_eval=batch)
    attributed: Tensor = found[0].detach().float().masked_fill(~where[0], 0.0).cpu()
    return attributed
