"""What `analyse attribution` measures on one prompt: attribution, attention, and how alike they rank the tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sparselens.analyses.attribution.method import (
    ablation,
    checked,
    integrated_gradients,
    log_probability,
    logits_after,
)
from sparselens.analyses.attribution.plan import Attribution, Case
from sparselens.analyses.attribution.scores import (
    QUANTITIES,
    correlations,
    kendall,
    on_dropped,
    settled,
    shuffled,
    spearman,
    units,
)
from sparselens.analyses.attribution.watch import RowWatch
from sparselens.workbench.session import Session

Ran = Callable[[int], None]


@torch.no_grad()
def answers(session: Session, case: Case, policy: str, kernel: str) -> bool:
    """Return whether the answer's first token is the most probable one under a policy."""
    checked(session)
    with session.under(policy, kernel=kernel):
        logits = logits_after(session, torch.tensor([case.ids], device=session.device))
    return int(logits[0].argmax()) == case.answer


@dataclass(frozen=True, eq=False)
class Seen:
    """One prompt under a policy: attribution `[tokens]` by method, attention `[layers, heads, tokens]` by quantity.

    `kept [layers, heads, tokens]`: what the target row keeps. `value` and `value_replaced`: the answer's
    log-probability, as it is and with all tokens replaced that may be.
    """

    attributed: dict[str, Any]
    attention: dict[str, Any]
    kept: Any
    value: float
    value_replaced: float
    answered: bool
    calls: int
    dense_calls: int


def seen(session: Session, chosen: Attribution, case: Case, token: int, ran: Ran | None = None) -> Seen:
    """Run one prompt under the policy: once watched, then by each of the methods; `token` replaces tokens."""
    ids = torch.tensor([case.ids], device=session.device)
    baseline = torch.tensor([case.with_replacement(token)], device=session.device)
    checked(session)
    target, watch = log_probability(session, case.answer, ran), RowWatch.of(session)
    attributed = {}
    with session.under(chosen.policy, kernel=chosen.kernel, observers=[watch]) as execution, torch.no_grad():
        logits = logits_after(session, ids)[0]
        dense_calls, calls = execution.dense_calls, execution.calls
    value = float(torch.log_softmax(logits, -1)[case.answer])
    with session.under(chosen.policy, kernel=chosen.kernel):
        with torch.no_grad():
            value_replaced = float(target(baseline)[0])
        if "ablation" in chosen.methods:
            each = (True, *case.replaced[1:])  # the first token too: its own path integral would be rough
            found = ablation(target, ids, token, each, batch=chosen.batch)
            attributed["ablation"] = found.double().numpy()
        if "ig" in chosen.methods:
            found = integrated_gradients(
                session, target, ids, baseline, steps=chosen.steps, batch=chosen.batch
            )
            attributed["ig"] = found.double().numpy()
    return Seen(
        attributed,
        {name: watch.stacked(name).double().numpy() for name in QUANTITIES},
        watch.stacked("kept").numpy(),
        value,
        value_replaced,
        int(logits.argmax()) == case.answer,
        calls,
        dense_calls,
    )


def numbers(found: Seen, case: Case, draws: int) -> dict[str, Any]:
    """Return what is kept of a prompt: every metric `[units]`, `shuffled [draws, units]`, and single numbers."""
    replaced = np.asarray(case.replaced)
    at = np.flatnonzero(replaced)
    attention = {name: units(values) for name, values in found.attention.items()}
    kept = found.kept.reshape(-1, found.kept.shape[-1])[:, at]
    made: dict[str, Any] = correlations(found.attributed, attention, replaced)
    first = next(iter(found.attributed))
    made["shuffled"] = shuffled(
        found.attributed[first][at], attention["attention"][:, at], draws=draws, seed=case.prompt.id
    ).astype(np.float32)
    made |= {
        "log_probability": found.value,
        "log_probability_replaced": found.value_replaced,
        "answered": float(found.answered),
        "compared_tokens": len(at),
        "dropped": float((~kept).mean()),
        "calls": found.calls,
        "dense_calls": found.dense_calls,
    }
    for method, values in found.attributed.items():
        size = np.abs(settled(values[at]))
        made[_of("attribution_spearman_recency", method)] = spearman(size, at[None])[0]
        made[_of("attribution_on_dropped", method)] = on_dropped(values[at], kept)
    if "ig" in found.attributed:
        made["completeness_error"] = completeness_error(found)
    if len(found.attributed) == 2:
        made |= _agreement(*(settled(found.attributed[name][at]) for name in ("ig", "ablation")))
    return made


def completeness_error(found: Seen) -> float:
    """Return |Σ IG − (f(x) − f(baseline))| ÷ |f(x) − f(baseline)|; NaN where nothing changed."""
    change = found.value - found.value_replaced
    return abs(float(found.attributed["ig"].sum()) - change) / abs(change) if change else float("nan")


def _agreement(ig: Any, ablated: Any) -> dict[str, Any]:
    """Return the rank correlations of the two methods: of absolute values, and of values with their signs."""
    return {
        "ig_ablation_spearman": spearman(np.abs(ig), np.abs(ablated)[None])[0],
        "ig_ablation_kendall": kendall(np.abs(ig), np.abs(ablated)[None])[0],
        "ig_ablation_spearman_signed": spearman(ig, ablated[None])[0],
    }


def _of(name: str, method: str) -> str:
    """`name` as `Metric.name` has it: ablation is not said."""
    return name if method == "ablation" else f"{name}_{method}"
