"""Importance by ablation: what the loss on prose costs when a head hands on nothing, head by head.

Each head alone is set to zero in all rows (Michel et al., arXiv 1905.10650, mask heads the same way). Beside it the
estimate from one backward pass, −⟨∂loss/∂z, z⟩: what zeroing would cost if the loss were linear. Heads that back each
other up look harmless one by one; `analyse ablate` cuts sets of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparselens.analyses.measured import Measured, measured
from sparselens.analyses.roles.ground import Ground
from sparselens.analyses.tap import Tap, embedded
from sparselens.kernels.kernel import kernel as kernel_named
from sparselens.workbench.intervention import Rows, intervention
from sparselens.workbench.passage import Passage, recorded, resumed
from sparselens.workbench.readout import ROWS
from sparselens.workbench.session import Session, decoder_layers

DEFINITIONS = {
    "importance": "rise of the loss (nats a token, prose windows) when the head hands on nothing, zero ablation of it "
    "alone, all rows; mean over windows",
    "importance_estimate": "the same from one backward pass: −⟨∂loss/∂z, z⟩, exact if the loss were linear",
}


def on_ablation(ground: Ground) -> list[Measured]:
    """Return both importances over the first `importance` windows of prose."""
    material = ground.plan.windows
    prompts = material.prompts[: ground.chosen.importance]
    ids = torch.tensor([prompt.token_ids for prompt in prompts], device=ground.session.device)
    key = "importance " + " ".join(prompt.id for prompt in prompts)
    ground.bar.says(f"importance on {len(prompts)} windows")
    passage, whole = _whole(ground, ids)
    risen = []
    for layer in range(ground.session.n_layers):
        found = ground.ledger.once(
            f"{key} {layer}",
            lambda layer=layer: {"losses": _without(ground, ids, passage, layer)},  # type: ignore[misc]
        )
        risen.append(found["losses"] - whole)  # [heads, windows]
        ground.bar.advance(ids.numel() * ground.session.n_heads)
        ground.bar.finished_prompt()
    exact = np.concatenate(risen).T
    guessed = ground.ledger.once(f"{key} estimate", lambda: {"values": _estimates(ground, ids)})["values"]
    params = {**ground.conventions, "ablation": "zero", "window": ids.shape[1]}
    return [
        measured(
            metric,
            values,
            [prompt.id for prompt in prompts],
            prompt_set=material.call,
            rows="all",
            definition=DEFINITIONS[metric],
            params=params,
        )
        for metric, values in (("importance", exact), ("importance_estimate", guessed))
    ]


@torch.no_grad()
def _whole(ground: Ground, ids: Tensor) -> tuple[Passage, Any]:
    """Return a forward pass of the batch to take up again, and its losses `[windows]`."""
    session = ground.session
    with (
        session.under(ground.chosen.policy, kernel=ground.kernel) as execution,
        recorded(decoder_layers(session.model), execution) as passage,
    ):
        states = session.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    return passage, losses(session, states, ids).numpy()


@torch.no_grad()
def _without(ground: Ground, ids: Tensor, passage: Passage, layer: int) -> Any:
    """Return the losses `[heads, windows]` with each head of a layer zeroed."""
    session = ground.session
    kernel = kernel_named(ground.kernel) if isinstance(ground.kernel, str) else ground.kernel
    found = []
    for head in range(session.n_heads):
        cut = intervention("zero", [(layer, head)], Rows(), kernel)
        with (
            session.under(ground.chosen.policy, kernel=kernel, editors=[cut]) as execution,
            resumed(passage, layer, execution),
        ):
            states = session.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        found.append(losses(session, states, ids))
    return torch.stack(found).numpy()


def _estimates(ground: Ground, ids: Tensor) -> Any:
    """Return −⟨∂loss/∂z, z⟩ `[windows, layers · heads]`; windows do not see each other."""
    session, tap = ground.session, Tap()
    _ = session.readout
    with torch.enable_grad(), session.under(ground.chosen.policy, kernel=ground.kernel, editors=[tap]):
        inputs = embedded(session.model, ids)
        states = session.model.get_decoder()(inputs_embeds=inputs, use_cache=False).last_hidden_state
        gradients = tap.gradients(losses(session, states, ids).sum())
    inner = [
        -(gradient * layer.output).sum((-1, -2))
        for gradient, layer in zip(gradients, tap.layers, strict=True)
    ]
    return torch.stack(inner, dim=1).flatten(1).detach().cpu().numpy()


def losses(session: Session, states: Tensor, ids: Tensor) -> Tensor:
    """Return each sequence's mean loss (nats a token): `[batch]`, from final states, by chunks of rows."""
    flat, target = states[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
    parts = [
        torch.nn.functional.cross_entropy(
            session.readout.logits(flat[start : start + ROWS]), target[start : start + ROWS], reduction="none"
        )
        for start in range(0, len(target), ROWS)
    ]
    return torch.cat(parts).view(len(ids), -1).mean(-1).cpu()
