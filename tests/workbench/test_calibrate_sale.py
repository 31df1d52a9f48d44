"""SALE's thresholds are the largest of their halvings that keep each head near its dense output."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from small_session import small_session
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.kernel import Attended, kernel
from sparselens.kernels.policies.sale import Sale as Policy
from sparselens.kernels.policy import Memory
from sparselens.kernels.selection import Selection
from sparselens.kernels.statistics import NOTHING, Want
from sparselens.workbench.calibration import calibration
from sparselens.workbench.calibrations.sale import Sale
from sparselens.workbench.encoder import Encoder

SIZES = "local=16,segment=16,block_q=16,block_k=16"


@dataclass
class Distances:
    """What each head's output loses a token, under thresholds `tau [layers, heads]`."""

    tau: Tensor
    found: dict[int, Tensor] = field(default_factory=dict)

    def want(self, call: AttentionCall) -> Want:
        return NOTHING

    def saw(self, call: AttentionCall, selection: Selection, attended: Attended) -> None:
        distances = []
        for head in range(call.heads):
            policy = Policy(
                tau=float(self.tau[call.layer, head]), local=16, segment=16, block_q=16, block_k=16
            )
            sparse = kernel("reference").attend(call, policy.select(call, Memory())).output
            distances.append((sparse - attended.output)[0, head].abs().sum() / call.q_len)
        self.found[call.layer] = torch.stack(distances)


def distances(session: object, ids: list[int], tau: Tensor) -> Tensor:
    seen = Distances(tau)
    with torch.no_grad(), session.under("dense", kernel="reference", observers=[seen]):  # type: ignore[attr-defined]
        session.model(input_ids=torch.tensor([ids]), use_cache=False)  # type: ignore[attr-defined]
    return torch.stack([seen.found[layer] for layer in sorted(seen.found)])


def test_thresholds_are_halved_until_the_error_a_token_is_small_enough() -> None:
    session = small_session()
    made = calibration(f"sale(n=1,length=150,error=0.2,start=8.0,floor=0.001,kernel=reference,{SIZES})")
    assert isinstance(made, Sale)
    content, data = made.measure(session, lambda _: None)
    tau = torch.tensor(content["tau"])
    prompt = made._prompt(Encoder(session.tokenizer), random.Random(0), session.max_tokens)
    assert data["tokens"] == [len(prompt)]
    assert bool((distances(session, prompt, tau) < 0.2).all())
    lowered = (tau < 8) & (tau > 0)
    assert bool(lowered.any())
    assert bool((distances(session, prompt, 2 * tau)[lowered] >= 0.2).all())
    steps = torch.log2(8 / tau[tau > 0])
    assert torch.equal(steps, steps.round())


def test_a_strict_error_makes_heads_dense_and_a_lax_one_changes_nothing() -> None:
    session = small_session()
    strict, _ = calibration(f"sale(n=1,length=150,error=1e-9,start=0.5,{SIZES})").measure(
        session, lambda _: None
    )
    lax, data = calibration(f"sale(n=1,length=150,error=1e9,start=0.5,{SIZES})").measure(
        session, lambda _: None
    )
    assert min(map(min, strict["tau"])) == 0
    assert lax["tau"] == [[0.5] * 4] * 2
    assert data["rounds"] == 2


def test_the_plan_runs_on_its_model(tmp_path: Path) -> None:
    session = small_session()
    plan = (
        calibration(f"sale(n=1,length=150,error=0.2,start=0.5,{SIZES})")
        .plan(session)
        .write(tmp_path / "p.json")
    )
    with torch.no_grad():
        logits = session.logits(torch.arange(5, 125)[None], policy=f"sale(plan={plan},{SIZES})")
    assert bool(torch.isfinite(logits).all())


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="error, start and floor are more than 0"):
        Sale(error=0.0)
    with pytest.raises(ValueError, match="local is a multiple of block_k"):
        Sale(local=100)
    with pytest.raises(ValueError, match="make length smaller"):
        Sale(n=1, length=300).measure(small_session(), lambda _: None)
