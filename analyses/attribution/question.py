"""`analyse attribution`: whether attention says which tokens mattered for the answer.

What matters is found by Captum (integrated gradients on the input embeddings, and token ablation); what attention says
is read from the row that predicts the answer, under the same policy. Both rank the tokens of each prompt; the answer
is how alike the two orders are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparselens.analyses.analysis import Analysis, Findings, Setting
from sparselens.analyses.attribution.measure import answers, numbers, seen
from sparselens.analyses.attribution.method import QUADRATURE
from sparselens.analyses.attribution.plan import Attribution, Case, cases, replacement_token
from sparselens.analyses.attribution.rows import evals, head_scores, prompt_numbers, prompt_scores
from sparselens.analyses.attribution.show import show
from sparselens.kernels.policy import parse as parse_policy
from sparselens.workbench.encoder import BOS, Encoder
from sparselens.workbench.progress import Progress
from sparselens.workbench.run_card import policy_card
from sparselens.workbench.session import Session


@dataclass(frozen=True)
class Planned:
    """The prompts that are measured, those that the dense model does not answer, and the token that replaces."""

    used: list[Case]
    unanswered: list[Case]
    token: int


def planned(session: Session, chosen: Attribution) -> Planned:
    """Return what is run; `ValueError` where the dense model predicts no prompt's answer."""
    token = replacement_token(session.tokenizer, chosen.replacement)
    every = cases(session, chosen)
    right = {case.prompt.id for case in every if answers(session, case, "dense", chosen.kernel)}
    if not right:
        raise ValueError(
            f"attribution: under dense attention the model predicts the answer of none of the {len(every)} prompts of"
            f" {chosen.prompts}; give prompts that it answers"
        )
    used = [case for case in every if case.prompt.id in right]
    return Planned(used, [case for case in every if case.prompt.id not in right], token)


def find(setting: Setting) -> Findings:
    """Measure every prompt that the dense model answers."""
    chosen: Attribution = setting.parameters
    session = setting.model
    plan = planned(session, chosen)
    with Progress(len(plan.used), 0, enabled=setting.progress) as bar:

        def measured_once(case: Case) -> dict[str, Any]:
            bar.says(case.prompt.name)
            found = setting.ledger.once(
                case.prompt.id,
                lambda: numbers(seen(session, chosen, case, plan.token, bar.advance), case, chosen.shuffles),
            )
            bar.finished_prompt()
            return found

        measured = [measured_once(case) for case in plan.used]
    clusters = [case.cluster for case in plan.used]
    shape = (session.n_layers, session.n_heads)
    about = {"prompt_set": chosen.prompts, "params": _params(session, chosen, plan)}
    found = prompt_numbers(measured, clusters, shape)
    return Findings(
        [
            *head_scores(measured, clusters, shape, chosen.methods, about),
            evals(found, measured, clusters),
            prompt_scores(found, [case.prompt.id for case in plan.used]),
        ],
        _record(chosen, plan, measured),
    )


def _record(chosen: Attribution, plan: Planned, measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the fields of the run's record: its policy, and which prompts were used in which clusters."""
    dense, calls = (sum(int(each[name]) for each in measured) for name in ("dense_calls", "calls"))
    return {
        **policy_card(parse_policy(chosen.policy)),
        "dense_call_share": dense / calls,
        "kernel": chosen.kernel,
        "seed": chosen.seed,
        "prompt_set": chosen.prompts,
        "extra": {
            "clusters": {case.prompt.id: case.cluster for case in plan.used},
            "unanswered": [case.prompt.id for case in plan.unanswered],
        },
    }


def _params(session: Session, chosen: Attribution, plan: Planned) -> dict[str, Any]:
    """Return the conventions that every score is measured under."""
    return {
        "policy": chosen.policy,
        "pattern": "executed",
        "selection": "recompute",
        "target": "log-probability of the answer's first token",
        "answered": "prompts whose answer's first token the dense model finds most probable",
        "unanswered": len(plan.unanswered),
        "replacement": chosen.replacement,
        "replacement_id": plan.token,
        "kept_tokens": "first, special, chat template, last",
        "quadrature": QUADRATURE,
        "steps": chosen.steps,
        "bos": chosen.bos,
        "opening": list(Encoder(session.tokenizer, bos=BOS[chosen.bos]).opening()),
        "seed": chosen.seed,
    }


def cost(setting: Setting) -> str:
    """Return how many passes of the model the analysis takes, if every prompt is answered."""
    chosen: Attribution = setting.parameters
    every = cases(setting.model, chosen)
    forwards = sum(3 + (2 if "ig" in chosen.methods else 0) for _ in every)
    if "ablation" in chosen.methods:
        forwards += sum(sum(case.replaced) + 3 for case in every)
    backwards = len(every) * chosen.steps if "ig" in chosen.methods else 0
    mean = sum(len(case.ids) for case in every) / len(every)
    return (
        f"{len(every)} prompts of {mean:.0f} tokens: {forwards:,} forward passes"
        f" and {backwards:,} forward and backward"
    )


ANALYSIS = Analysis(
    name="attribution",
    question="does attention say which tokens mattered for the answer?",
    parameters=Attribution,
    find=find,
    cost=cost,
    show=show,
)
