"""What every head writes on a prompt up to the token that predicts the answer: mean over tokens, or at that one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.kernel import Attended
from sparselens.kernels.selection import Selection
from sparselens.kernels.statistics import NOTHING, Want
from sparselens.workbench.projection import OutputProjection
from sparselens.workbench.prompt import Prompt
from sparselens.workbench.session import Session, attention_layers

TOGETHER = 16
"""Prompts of one length that run at once."""


@dataclass(eq=False)
class MeanWatch:
    """An observer: what heads hand on, mean over `all` rows or at the `end`: `[batch, heads, head_dim]` a layer."""

    rows: str = "all"
    layers: list[Tensor] = field(default_factory=list)

    def want(self, call: AttentionCall) -> Want:
        """Ask for no statistics."""
        del call
        return NOTHING

    def saw(self, call: AttentionCall, selection: Selection, attended: Attended) -> None:
        """Keep the layer's means."""
        del call, selection
        output = attended.output.float()
        self.layers.append((output.mean(2) if self.rows == "all" else output[:, :, -1]).cpu())


def batches(prompts: Sequence[Prompt]) -> Iterator[list[int]]:
    """Yield the places of prompts that run together: of one length, at most `TOGETHER`."""
    by_length: dict[int, list[int]] = {}
    for place, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt) - len(prompt.answer_ids), []).append(place)
    for places in by_length.values():
        for start in range(0, len(places), TOGETHER):
            yield places[start : start + TOGETHER]


@torch.no_grad()
def written(
    session: Session, prompts: Sequence[Prompt], policy: str, kernel: str, rows: str = "all"
) -> dict[str, Any]:
    """Return of prompts of one length what heads hand on, and what the model says.

    `z [prompts, layers, heads, head_dim]`, `difference [prompts]` (answer − mean of foils, logits), `first_token` and
    `choice` (whether the answer is the most probable token; among answer and foils).
    """
    ids = torch.tensor(
        [prompt.token_ids[: len(prompt) - len(prompt.answer_ids)] for prompt in prompts],
        device=session.device,
    )
    _, watch = session.readout, MeanWatch(rows)
    with session.under(policy, kernel=kernel, observers=[watch]):
        states = session.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[:, -1]
    logits = session.readout.logits(states)
    right = torch.stack([row[prompt.answer_ids[0]] for row, prompt in zip(logits, prompts, strict=True)])
    foils = [row[list(prompt.foils)] for row, prompt in zip(logits, prompts, strict=True)]
    return {
        "z": torch.stack(watch.layers, 1).numpy(),
        "difference": (right - torch.stack([each.mean() for each in foils])).cpu().numpy(),
        "first_token": (right == logits.max(-1).values).cpu().numpy(),
        "choice": (right > torch.stack([each.max() for each in foils])).cpu().numpy(),
    }


def projected(session: Session, z: Any) -> Tensor:
    """Return what heads write into the residual stream, `[prompts, layers · heads, d_model]`, from `z`."""
    found = [
        torch.einsum(
            "phd,hdm->phm",
            torch.from_numpy(z[:, layer]),
            OutputProjection.of(module, session.n_heads).weight.cpu(),
        )
        for layer, module in enumerate(attention_layers(session.model))
    ]
    return torch.cat(found, 1)


def joined(parts: Sequence[dict[str, Any]], places: Sequence[list[int]]) -> dict[str, Any]:
    """Return the numbers of all batches in the order of the prompts."""
    order = np.argsort(np.concatenate([np.asarray(each) for each in places]))
    return {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}
