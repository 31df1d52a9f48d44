"""Double Sparsity's channels: which of a head's channels carry its scores, from the model's own queries and keys.

arXiv:2408.07092 and the authors' code (andy-yang-1/DoubleSparse, b0575e6): per head, the mean over tokens of
|q_c · k_c| of a token's own query and key, after RoPE; channels in descending order. They take 256 texts of 512 tokens
of The Pile; the sums of their script hold the last text alone for this statistic, here all texts count.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.kernel import Attended
from sparselens.kernels.selection import Selection
from sparselens.kernels.statistics import NOTHING, Want
from sparselens.workbench.calibration import Calibration, Say
from sparselens.workbench.session import Session

STATISTICS = ("qk", "q", "k")


@dataclass(eq=False)
class Sums:
    """An observer that adds up one statistic of every channel of every head, over all tokens."""

    statistic: str
    layers: dict[int, Tensor] = field(default_factory=dict)

    def want(self, call: AttentionCall) -> Want:
        """Ask for no statistics of the kernel."""
        del call
        return NOTHING

    def saw(self, call: AttentionCall, selection: Selection, attended: Attended) -> None:
        """Add the layer's `[heads, head_dim]`."""
        del selection, attended
        query, key = call.query[0].double(), call.key[0].double().repeat_interleave(call.group, 0)
        values = {"qk": query * key, "q": query, "k": key}[self.statistic].abs().sum(1)
        self.layers[call.layer] = self.layers.get(call.layer, torch.zeros_like(values)) + values


@dataclass(frozen=True)
class DoubleSparsity(Calibration):
    """Rank each head's channels on `prompts` by the mean of |q_c · k_c| (`statistic` `qk`), |q_c| or |k_c|."""

    prompts: str = "prose(length=512,n=16)"
    statistic: str = "qk"

    method: ClassVar[str] = "double_sparsity"
    summary: ClassVar[str] = "which channels of each head carry its scores"

    def __post_init__(self) -> None:
        if self.statistic not in STATISTICS:
            raise ValueError(
                f"double_sparsity: statistic is one of {', '.join(STATISTICS)}, not {self.statistic!r}"
            )

    @torch.no_grad()
    def measure(self, session: Session, say: Say) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return `channels`, for each layer and head all channels, heaviest first; one forward pass a prompt."""
        prompts, sums = session.prompts(self.prompts), Sums(self.statistic)
        for number, prompt in enumerate(prompts, 1):
            with session.under("dense", observers=[sums]):
                ids = torch.tensor([prompt.token_ids], device=session.device)
                session.model(input_ids=ids, use_cache=False, logits_to_keep=1)
            say(f"{number}/{len(prompts)} {prompt.name}")
        ranked = [
            sums.layers[layer].sort(dim=-1, descending=True, stable=True).indices
            for layer in sorted(sums.layers)
        ]
        content = {"channels": [layer.tolist() for layer in ranked]}
        return content, {"prompt_ids": [prompt.id for prompt in prompts], "tokens": sum(map(len, prompts))}


CALIBRATION = DoubleSparsity
