"""`analyse attribution`: whether attention says which tokens mattered for the answer.

What matters is found by Captum (integrated gradients on the input embeddings, and token ablation); what attention says
is read from the row that predicts the answer, under the same policy. Both rank the tokens of each prompt; the answer
is how alike the two orders are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparselens.analyses.analysis import Analysis, Findings, Setting
from sparselens.analyses.attribution_measure import answers, held_out_best, numbers, seen
from sparselens.analyses.attribution_method import QUADRATURE
from sparselens.analyses.attribution_plan import Attribution, Case, cases, replacement_token
from sparselens.analyses.attribution_scores import metrics
from sparselens.analyses.attribution_show import TASK, show
from sparselens.analyses.interval import clustered_mean
from sparselens.analyses.role_plan import BOS
from sparselens.kernels.policy import parse as parse_policy
from sparselens.workbench.encoder import Encoder
from sparselens.workbench.progress import Progress
from sparselens.workbench.session import Session

_UNSTORED = ("shuffled", "calls", "dense_calls")


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
    found = _prompt_numbers(measured, clusters, shape)
    policy = parse_policy(chosen.policy)
    record = {
        "policy": chosen.policy,
        "policy_json": json.dumps(policy.to_json()),
        "policy_hash": policy.hash,
        "policy_source": policy.source_code if ".py:" in chosen.policy else None,
        "phase": policy.phase,
        "off_label": policy.off_label,
        "lookahead": policy.lookahead,
        "dense_call_share": sum(int(each["dense_calls"]) for each in measured)
        / sum(int(each["calls"]) for each in measured),
        "kernel": chosen.kernel,
        "seed": chosen.seed,
        "prompt_set": chosen.prompts,
        "extra": {
            "clusters": {case.prompt.id: case.cluster for case in plan.used},
            "unanswered": [case.prompt.id for case in plan.unanswered],
        },
    }
    heads = _head_scores(measured, clusters, shape, chosen, _params(session, chosen, plan))
    return Findings([*heads, _evals(found, measured, clusters), _prompt_scores(found, plan.used)], record)


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


def _head_scores(
    measured: Sequence[Mapping[str, Any]],
    clusters: Sequence[str],
    shape: tuple[int, int],
    chosen: Attribution,
    params: dict[str, Any],
) -> list[tuple[str, dict[str, Any]]]:
    """Return the rows of every head, and (head NULL) of every layer's mean over heads; none where nothing has an order.

    A metric of a head is left out where no prompt has it: nothing mattered, or the head reads all tokens alike.
    """
    layers, heads = shape
    places: list[tuple[int, int | None]] = [(layer, head) for layer in range(layers) for head in range(heads)]
    places += [(layer, None) for layer in range(layers)]
    rows = []
    for metric in metrics(chosen.methods):
        values = np.stack([each[metric.name] for each in measured])
        about = {"method": metric.method, "signed": metric.signed, "with_first": metric.with_first}
        common = {
            "metric": metric.name,
            "prompt_set": chosen.prompts,
            "rows": "all" if metric.quantity == "received" else "span:answer",
            "params": json.dumps({**params, **about}, sort_keys=True),
            "definition": metric.definition,
        }
        for number, (layer, head) in enumerate(places):
            rows.append({"layer": layer, "head": head, **_interval(values[:, number], clusters), **common})
    there = [row for row in rows if row["n"]]
    return [("head_scores", _columns(there))] if there else []


def _prompt_numbers(
    measured: Sequence[Mapping[str, Any]], clusters: Sequence[str], shape: tuple[int, int]
) -> dict[str, Any]:
    """Return `[prompts]` of every number of a prompt: of the mean over all heads, and those that are single.

    `…_best_head`: the head that is best on the other clusters. `…_shuffled`: the attribution in random order.
    """
    stored = [name for name in measured[0] if name not in _UNSTORED]
    found = {name: np.asarray([np.ravel(each[name])[-1] for each in measured], float) for name in stored}
    n_heads = shape[0] * shape[1]
    for name in stored:
        if name.startswith("attribution_spearman") and np.size(measured[0][name]) > 1:
            values = np.stack([each[name][:n_heads] for each in measured])
            found[f"{name}_best_head"] = held_out_best(values, clusters)
    found["attribution_spearman_attention_shuffled"] = np.asarray(
        [each["shuffled"][:, -1].mean() for each in measured]
    )
    return found


def _evals(
    found: Mapping[str, Any], measured: Sequence[Mapping[str, Any]], clusters: Sequence[str]
) -> tuple[str, dict[str, Any]]:
    """Return the model's numbers: means over prompts, and what chance reaches in 97.5 of 100 shuffles."""
    rows = [{"metric": name, **_interval(values, clusters)} for name, values in found.items()]
    control = np.stack([each["shuffled"][:, -1] for each in measured])
    control = control[~np.isnan(control).any(1)]
    if len(control):
        high = float(np.quantile(control.mean(0), 0.975))
        chance = {"value": high, "n": len(control), "n_clusters": None, "ci_low": None, "ci_high": None}
        rows.append({"metric": "attribution_spearman_attention_shuffled_high", **chance})
    return "evals", {"task": TASK, **_columns([row for row in rows if row["n"]])}


def _prompt_scores(found: Mapping[str, Any], used: Sequence[Case]) -> tuple[str, dict[str, Any]]:
    """Return the numbers of every prompt."""
    rows = [
        {"prompt_id": case.prompt.id, "metric": name, "value": float(values[number])}
        for name, values in found.items()
        for number, case in enumerate(used)
    ]
    return "prompt_scores", {"task": TASK, **_columns(rows)}


def _interval(values: Any, clusters: Sequence[str]) -> dict[str, Any]:
    """Return mean, interval and counts as columns; prompts without a value are left out."""
    found = clustered_mean(values, clusters)
    return {
        "value": found.mean,
        "n": found.n,
        "n_clusters": found.n_clusters,
        "ci_low": found.low,
        "ci_high": found.high,
    }


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: [row[name] for row in rows] for name in rows[0]}


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
