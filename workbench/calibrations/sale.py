"""SALE's thresholds: for each head the largest that keeps the output near that of full attention.

arXiv:2505.24179 and the authors' code (BirdChristopher/SALE, 39d380c), in sizes for a CPU. The prompts ask for the
value of one key in a long list of random pairs. Each head starts at `start`; while the absolute differences of its
output to the dense one, summed over tokens and channels, reach `error` a token, the threshold is halved; at `floor` or
less it becomes 0, which keeps everything. The layers below stay dense. Thresholds go on from prompt to prompt, so they
only fall.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.kernel import Attended, Kernel
from sparselens.kernels.kernel import kernel as kernel_named
from sparselens.kernels.parts.block import Blocks
from sparselens.kernels.policies.sale import Sale as SalePolicy
from sparselens.kernels.selection import Selection, Tiles
from sparselens.kernels.statistics import NOTHING, Want
from sparselens.workbench.calibration import Calibration, Say
from sparselens.workbench.encoder import Encoder
from sparselens.workbench.session import Session

QUESTION = (
    "Return the value that belongs to the key in this JSON object.\n\n{{{pairs}}}\n\nKey: {key}\nValue:"
)


@dataclass(eq=False)
class Halving:
    """An observer of a dense pass that lowers each head's threshold until the head's output is near enough.

    `tau [layers, heads]` are the thresholds, changed in place; `rounds` counts the sparse attentions that it took.
    """

    policy: SalePolicy
    kernel: Kernel
    error: float
    floor: float
    tau: Tensor
    rounds: int = field(default=0)

    def want(self, call: AttentionCall) -> Want:
        """Return that no statistics are needed."""
        del call
        return NOTHING

    def saw(self, call: AttentionCall, selection: Selection, attended: Attended) -> None:
        """Halve the thresholds of the call's layer where sparse attention is too far from what was attended."""
        del selection
        blocks, tau = Blocks.of(call, self.policy.block_q, self.policy.block_k), self.tau[call.layer]
        weights = self.policy.weights(blocks)
        while True:
            kept = self.policy.kept(blocks, weights, tau)
            tiles = Tiles(kept[None], self.policy.block_q, self.policy.block_k, blocks.first)
            difference = self.kernel.attend(call, tiles).output.float() - attended.output.float()
            self.rounds += 1
            far = (difference.abs().sum((-1, -2))[0] >= self.error * call.q_len) & (tau > 0)
            if not bool(far.any()):
                return
            tau[far] /= 2
            tau[tau <= self.floor] = 0


@dataclass(frozen=True)
class Sale(Calibration):
    """Halve thresholds from `start` on `n` prompts of about `length` tokens, until the error a token is below `error`.

    `error` is absolute, in the units of the model's values. `local`, `segment`, `block_q` and `block_k` are those of
    the policy that will use the plan.
    """

    n: int = 2
    length: int = 1024
    error: float = 0.4
    start: float = 0.008
    floor: float = 0.0001
    local: int = 128
    segment: int = 128
    block_q: int = 64
    block_k: int = 32
    kernel: str = "blocked"
    seed: int = 0

    method: ClassVar[str] = "sale"
    summary: ClassVar[str] = "one threshold a head: halved until sparse output is near the dense one"

    def __post_init__(self) -> None:
        if self.n < 1 or min(self.error, self.start, self.floor) <= 0:
            raise ValueError("sale: n is at least 1; error, start and floor are more than 0")
        SalePolicy(local=self.local, segment=self.segment, block_q=self.block_q, block_k=self.block_k)

    @torch.no_grad()
    def measure(self, session: Session, say: Say) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return `tau`, a row a layer, and how it came about; raises `ValueError` where a prompt is too long."""
        policy = SalePolicy(
            local=self.local, segment=self.segment, block_q=self.block_q, block_k=self.block_k
        )
        tau = torch.full((session.n_layers, session.n_heads), self.start, device=session.device)
        halving = Halving(policy, kernel_named(self.kernel), self.error, self.floor, tau)
        encoder, rng, tokens, started = (
            Encoder(session.tokenizer),
            random.Random(self.seed),
            [],
            time.monotonic(),
        )
        decoder: Any = session.model.get_decoder()
        for number in range(self.n):
            ids = self._prompt(encoder, rng, session.max_tokens)
            tokens.append(len(ids))
            with session.under("dense", kernel=self.kernel, observers=[halving]):
                decoder(input_ids=torch.tensor([ids], device=session.device), use_cache=False)
            dense = float((tau == 0).float().mean())
            say(
                f"prompt {number + 1}/{self.n} · {len(ids)} tokens · mean {float(tau.mean()):.2g} · dense {dense:.0%}"
            )
        data = {
            "prompts": "a key's value in a JSON object of random pairs",
            "tokens": tokens,
            "rounds": halving.rounds,
            "seconds": round(time.monotonic() - started, 1),
        }
        return {"tau": [[float(f"{value:.7g}") for value in row] for row in tau.tolist()]}, data

    def _prompt(self, encoder: Encoder, rng: random.Random, longest: int) -> list[int]:
        """Return the ids of a prompt of at least `length` tokens, as few as random pairs allow."""
        pairs: list[tuple[str, str]] = []
        while True:
            pairs.append((f"{rng.getrandbits(64):016x}", f"{rng.getrandbits(64):016x}"))
            listed = ", ".join(f'"{key}": "{value}"' for key, value in pairs)
            if len(listed) < self.length:
                continue
            ids, _ = encoder.encode(QUESTION.format(pairs=listed, key=rng.choice(pairs)[0]))
            if len(ids) >= self.length:
                break
        if len(ids) > longest:
            raise ValueError(
                f"sale: a prompt has {len(ids)} tokens, the model's context {longest}: make length smaller"
            )
        return ids


CALIBRATION = Sale
