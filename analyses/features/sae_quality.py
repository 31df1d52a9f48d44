"""How good an SAE is on text it was not trained on: sparsity, reconstruction, and what the model loses by it.

The loss recovered is (CE of the ablated site − CE with the SAE) ÷ (CE ablated − CE untouched), the site ablated to
zero or to its mean over the same tokens. Zero is the usual denominator and the easier one. Under a policy all four
losses are measured under that policy: it says what the SAE explains of the sparse model, not what the policy costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparselens.analyses.interval import Interval, clustered_mean, resamples
from sparselens.kernels.policy import Policy
from sparselens.workbench.sae import Sae
from sparselens.workbench.session import Session

SKIP = 1
"""First tokens of a window that the SAE leaves as they are: it was not trained on them."""

Edit = Callable[[Tensor], Tensor | None]


@dataclass(frozen=True)
class Quality:
    """What was measured under one policy, on `n` windows and `tokens` tokens (without the first of each window).

    `l0` active features a token; `explained` 1 − Σ‖x − x̂‖² ÷ Σ‖x − mean‖²; `dead` the share of features that no token
    activates; losses in nats a token; `recovered_*` shares with 95 % bootstrap intervals over windows.
    """

    policy: str
    n: int
    tokens: int
    l0: Interval
    explained: Interval
    dead: float
    loss: Interval
    loss_sae: Interval
    loss_zero: Interval
    loss_mean: Interval
    recovered_zero: Interval
    recovered_mean: Interval

    def row(self) -> dict[str, str | float | int]:
        """Return the measurements as text and numbers, one a column."""
        return {
            name: value if isinstance(value, str | int | float) else str(value)
            for name, value in vars(self).items()
        }


@torch.no_grad()
def quality(
    session: Session,
    sae: Sae,
    windows: Sequence[Sequence[int]],
    policy: Policy | str = "dense",
    kernel: str = "blocked",
) -> Quality:
    """Return how good `sae` is on windows of tokens under a policy. Four forward passes a window.

    Raises `ValueError` on fewer than two windows: there would be no interval.
    """
    if len(windows) < 2:
        raise ValueError(f"the quality of an SAE is measured on 2 windows or more, not {len(windows)}")
    seen: list[Tensor] = []
    untouched = _losses(session, sae, windows, policy, kernel, _kept(seen))
    vectors = [one[SKIP:] for one in seen]
    mean = torch.cat(vectors).mean(0)
    losses = {
        "sae": _losses(session, sae, windows, policy, kernel, _after(sae.reconstructed)),
        "zero": _losses(session, sae, windows, policy, kernel, _after(torch.zeros_like)),
        "mean": _losses(session, sae, windows, policy, kernel, _after(mean.expand_as)),
    }
    codes = [sae.encode(one) for one in vectors]
    active = torch.stack([(code != 0).any(0) for code in codes]).any(0)
    missed = [
        float((one - sae.decode(code)).square().sum()) for one, code in zip(vectors, codes, strict=True)
    ]
    spread = [float((one - mean).square().sum()) for one in vectors]
    return Quality(
        policy=str(policy),
        n=len(windows),
        tokens=sum(len(one) for one in vectors),
        l0=_mean([float((code != 0).sum(-1).float().mean()) for code in codes]),
        explained=_ratio(np.subtract(spread, missed), np.asarray(spread)),
        dead=1 - float(active.float().mean()),
        loss=_mean(untouched),
        loss_sae=_mean(losses["sae"]),
        loss_zero=_mean(losses["zero"]),
        loss_mean=_mean(losses["mean"]),
        recovered_zero=_recovered(untouched, losses["sae"], losses["zero"]),
        recovered_mean=_recovered(untouched, losses["sae"], losses["mean"]),
    )


def _losses(
    session: Session,
    sae: Sae,
    windows: Sequence[Sequence[int]],
    policy: Policy | str,
    kernel: str,
    edit: Edit,
) -> list[float]:
    """Return the mean loss of each window (nats a token) while `edit` stands at the SAE's site."""
    found = []
    readout = session.readout
    with session.under(policy, kernel=kernel), sae.site.edited(session, edit):
        for window in windows:
            ids = torch.tensor([list(window)], device=session.device)
            hidden = session.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0]
            logits = readout.logits(hidden[SKIP:-1])
            found.append(float(torch.nn.functional.cross_entropy(logits, ids[0, SKIP + 1 :])))
    return found


def _kept(seen: list[Tensor]) -> Edit:
    def take(vectors: Tensor) -> None:
        seen.append(vectors[0].float())

    return take


def _after(replace: Callable[[Tensor], Tensor]) -> Edit:
    """Replace all vectors but the first ones of a window."""

    def change(vectors: Tensor) -> Tensor:
        return torch.cat([vectors[:, :SKIP], replace(vectors[:, SKIP:]).to(vectors.dtype)], 1)

    return change


def _mean(values: Sequence[float]) -> Interval:
    return clustered_mean(values, [str(place) for place in range(len(values))])


def _recovered(untouched: Sequence[float], with_sae: Sequence[float], ablated: Sequence[float]) -> Interval:
    """Return the share of the ablation's cost that the SAE saves: a ratio of means over windows."""
    return _ratio(np.subtract(ablated, with_sae), np.subtract(ablated, untouched))


def _ratio(above: np.ndarray, below: np.ndarray) -> Interval:
    """Return Σ above ÷ Σ below over windows, with a bootstrap interval over windows."""
    drawn = resamples([str(place) for place in range(len(above))])
    spread = (drawn @ above) / (drawn @ below)
    low, high = np.quantile(spread, [0.025, 0.975])
    return Interval(float(above.sum() / below.sum()), float(low), float(high), len(above), len(above))
