"""DuoAttention's gates: which key-value heads must see far, found by gradient on one scalar a head.

arXiv:2410.10819 and the authors' code (mit-han-lab/duo-attention, fe93c31), in sizes for a CPU. A head hands on
gate · full + (1 − gate) · streaming; the weights are frozen. The loss is the mean over label rows of the
feature-averaged squared difference to the final hidden states of a dense pass, plus `penalty` times the mean gate.
AdamW without weight decay; gates start at 1 and are clamped to [0, 1]; the rate rises over the first fifth of the steps
and falls over the last, never below a tenth.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.gradient import attend_with_gradient, needs_gradient
from sparselens.kernels.kernel import Kernel
from sparselens.kernels.kernel import kernel as kernel_named
from sparselens.kernels.policy import parse
from sparselens.kernels.selection import Everything, Selection
from sparselens.kernels.statistics import NOTHING
from sparselens.workbench.calibration import Calibration, Say
from sparselens.workbench.encoder import Encoder
from sparselens.workbench.intervention import Snapshot
from sparselens.workbench.passkey import LABELS, Recital, recital
from sparselens.workbench.session import Session

FULL = ("base", "mixed")
FLOOR = 0.1  # of the rate, while it rises and falls


@dataclass(frozen=True, eq=False)
class Gates:
    """An editor under the streaming policy that mixes the full part in, `values [layers, kv_heads]` of it.

    With a `base` the full part is what the dense pass handed on; without, the heads attend densely to what now arrives.
    """

    values: Tensor
    kernel: Kernel
    base: Snapshot | None

    def edit(self, call: AttentionCall, selection: Selection, output: Tensor) -> Tensor:
        """Return gate · full + (1 − gate) · streaming, `[batch, heads, q_len, head_dim]`."""
        del selection
        gate = self.values[call.layer].to(output).repeat_interleave(call.group)[:, None, None]
        return gate * self._full(call) + (1 - gate) * output

    def _full(self, call: AttentionCall) -> Tensor:
        if self.base is not None:
            return self.base.layers[call.layer].output
        if needs_gradient(call):
            return attend_with_gradient(self.kernel, call, Everything(), NOTHING).output
        return self.kernel.attend(call, Everything(), NOTHING).output


@dataclass(frozen=True)
class DuoAttention(Calibration):
    """Optimise the gates on `steps` prompts of `shortest` to `longest` tokens, each with `passkeys` of `words` words.

    `sink`, `recent`: the streaming form. `labels`: `answer` (rows that predict a passkey's words) or `tail` (all rows
    from the first question on, as the authors' code has it). `full`: what is mixed in, the dense pass's output (`base`,
    as the authors' code has it) or dense attention to the mixed states (`mixed`, as the paper writes it).
    """

    steps: int = 100
    shortest: int = 384
    longest: int = 640
    passkeys: int = 4
    words: int = 8
    sink: int = 8
    recent: int = 64
    labels: str = "answer"
    full: str = "base"
    rate: float = 0.02
    penalty: float = 0.05
    kernel: str = "blocked"
    seed: int = 0

    method: ClassVar[str] = "duo_attention"
    summary: ClassVar[str] = (
        "one gate a key-value head, by gradient: what passkeys lose where it only streams"
    )

    def __post_init__(self) -> None:
        if min(self.steps, self.recent) < 1 or self.sink < 0:
            raise ValueError("duo_attention: steps and recent are at least 1, sink at least 0")
        if not 1 <= self.shortest <= self.longest:
            raise ValueError(
                f"duo_attention: lengths go from {self.shortest} to {self.longest}: give shortest first"
            )
        for name, value, known in (("labels", self.labels, LABELS), ("full", self.full, FULL)):
            if value not in known:
                raise ValueError(f"duo_attention: {name} is {' or '.join(known)}, not {value!r}")

    def measure(self, session: Session, say: Say) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return `gates`, a row a layer, and how they came about; 5 s a step on one thread of the default model."""
        return self.optimised(session, self.examples(session), say)

    def examples(self, session: Session) -> Iterator[Recital]:
        """Yield a fresh prompt for each step; raises `ValueError` where the lengths do not suit the model."""
        encoder, rng = Encoder(session.tokenizer), random.Random(self.seed)
        for _ in range(self.steps):
            made = recital(
                encoder,
                rng,
                length=rng.randint(self.shortest, self.longest),
                passkeys=self.passkeys,
                words=self.words,
                labels=self.labels,
            )
            if len(made.ids) > session.max_tokens:
                raise ValueError(
                    f"duo_attention: a prompt has {len(made.ids)} tokens, the model's context {session.max_tokens}:"
                    " make longest smaller"
                )
            yield made

    def optimised(
        self, session: Session, examples: Iterable[Recital], say: Say
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the gates that `steps` steps over the examples end at, and the curve of the loss."""
        gates = torch.ones(session.n_layers, session.n_kv_heads, device=session.device, requires_grad=True)
        optimizer = torch.optim.AdamW([gates], lr=self.rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rise_and_fall)
        curve, lengths, started = [], [], time.monotonic()
        with frozen(session.model):
            for step, example in enumerate(examples):
                with torch.no_grad():
                    gates.clamp_(0, 1)
                distance = self._distance(session, example, gates)
                loss: Any = distance + self.penalty * gates.abs().mean()
                loss.backward()
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                curve.append({"distance": _short(distance), "mean_gate": _short(gates.clamp(0, 1).mean())})
                lengths.append(len(example.ids))
                say(
                    f"step {step + 1}/{self.steps} · {lengths[-1]} tokens · distance {curve[-1]['distance']:.4g}"
                    f" · mean gate {curve[-1]['mean_gate']:.3f}"
                )
        data = {
            "prompts": "passkeys of random words in the manual's prose, recited in order",
            "tokens": lengths,
            "curve": curve,
            "seconds": round(time.monotonic() - started, 1),
        }
        return {"gates": [[_short(gate) for gate in row] for row in gates.clamp(0, 1)]}, data

    def _rise_and_fall(self, step: int) -> float:
        fifth = max(self.steps // 5, 1)
        return min(1.0, max((step + 1) / fifth, FLOOR), max((self.steps - step) / fifth, FLOOR))

    def _distance(self, session: Session, example: Recital, gates: Tensor) -> Tensor:
        """Return the mean squared difference of the label rows' final states, with its graph to the gates."""
        kernel, dense = kernel_named(self.kernel), parse("dense")
        rows = torch.tensor(example.rows, device=session.device)
        ids = torch.tensor([example.ids], device=session.device)
        decoder: Any = session.model.get_decoder()
        base = Snapshot(dense, frozenset(range(session.n_layers) if self.full == "base" else ()))
        with torch.no_grad(), session.under(dense, kernel=kernel, observers=[base]):
            target: Tensor = decoder(input_ids=ids, use_cache=False).last_hidden_state[0, rows]
        mixing = Gates(gates, kernel, base if self.full == "base" else None)
        streaming = f"a_shape(sink={self.sink},window={self.recent})"
        with torch.enable_grad(), session.under(streaming, kernel=kernel, editors=[mixing]):
            found: Tensor = decoder(input_ids=ids, use_cache=False).last_hidden_state[0, rows]
        wide = torch.promote_types(found.dtype, torch.float32)
        return (found.to(wide) - target.to(wide)).square().mean()


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """Ask for no gradient of the weights while the block lasts."""
    asking = [weight for weight in model.parameters() if weight.requires_grad]
    try:
        for weight in asking:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in asking:
            weight.requires_grad_(True)


def _short(value: Tensor) -> float:
    """Return a number to seven digits."""
    return float(f"{float(value.detach()):.7g}")


CALIBRATION = DuoAttention
