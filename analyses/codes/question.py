"""`analyse codes`: whether discrete codes of head outputs find the heads of a task, without cutting any.

O'Neill and Bui (2024, arXiv 2405.12522): an SAE is trained on what all heads write on a few prompts; the number of its
strongest feature is a head's code on a prompt; heads with codes that only positive prompts have are the circuit. Here
the heads that matter are found by exact ablation, and cheap scores are judged by them beside the codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sparselens.analyses.analysis import Analysis, Findings, Setting
from sparselens.analyses.codes.dictionary import Dictionary, trained
from sparselens.analyses.codes.plan import Codes, Task, task_of
from sparselens.analyses.codes.rows import TASK, Scored, areas, eval_rows, head_rows
from sparselens.analyses.codes.score import edge_scores, node_scores
from sparselens.analyses.codes.show import show
from sparselens.analyses.codes.truth import effects
from sparselens.analyses.codes.write import batches, joined, projected, written
from sparselens.analyses.interval import Interval, clustered_mean
from sparselens.analyses.movers.plan import Case
from sparselens.kernels.policy import parse as parse_policy
from sparselens.workbench.progress import Progress
from sparselens.workbench.prompt import Prompt
from sparselens.workbench.run_card import policy_card
from sparselens.workbench.session import Session

PERMUTED = 20
"""Swaps of positive and negative a trial."""


def find(setting: Setting) -> Findings:
    """Run the prompts, cut every head on some of them, train the SAEs, and compare the rankings."""
    chosen: Codes = setting.parameters
    session, task = setting.model, task_of(setting.model, chosen)
    prompts = (*task.positive, *task.negative)
    policies = list(dict.fromkeys((chosen.base, chosen.policy)))
    with Progress(len(policies) * len(prompts) + len(task.truth), 0, enabled=setting.progress) as bar:
        seen = {policy: _run(setting, prompts, policy, bar) for policy in policies}
        cut = []
        for case in task.truth:
            bar.says(f"every head alone · {case.prompt.name}")

            def alone(case: Case = case) -> dict[str, Any]:
                return effects(session, case, chosen.policy, chosen.kernel)

            cut.append(setting.ledger.once(f"cut {case.prompt.id}", alone))
            bar.finished_prompt()
        bar.says("codes")
        found, quality = scored(session, task, chosen, seen, cut)
    numbers = areas(found, chosen) | quality | _answered(task, seen[chosen.policy])
    blocks = [
        *head_rows(found, chosen, len(prompts), session.n_layers),
        eval_rows(numbers),
        _prompt_rows(task, seen[chosen.policy]),
    ]
    extra = {"n_pairs": len(task.positive), "n_truth": len(task.truth), "n_heads": len(found.effect)}
    return Findings(blocks, _record(chosen) | {"extra": extra}, prompts)


def _run(setting: Setting, prompts: Sequence[Prompt], policy: str, bar: Progress) -> dict[str, Any]:
    """Return what heads write on every prompt under a policy (see `written`)."""
    chosen: Codes = setting.parameters
    places, parts = list(batches(prompts)), []
    bar.says(f"prompts under {policy}")
    for some in places:

        def run(some: Sequence[int] = some) -> dict[str, Any]:
            return written(setting.model, [prompts[at] for at in some], policy, chosen.kernel, chosen.rows)

        parts.append(setting.ledger.once(f"{policy} {' '.join(prompts[at].id for at in some)}", run))
        for _ in some:
            bar.finished_prompt()
    return joined(parts, places)


def scored(
    session: Session,
    task: Task,
    chosen: Codes,
    seen: dict[str, dict[str, Any]],
    cut: Sequence[dict[str, Any]],
) -> tuple[Scored, dict[str, Interval]]:
    """Return every score of every head, and how good the SAEs are."""
    base = projected(session, seen[chosen.base]["z"])
    under = base if chosen.policy == chosen.base else projected(session, seen[chosen.policy]["z"])
    count = len(task.positive)
    trials = [trained(base, chosen, trial) for trial in range(chosen.trials)]
    made: dict[str, list[Any]] = {}
    for number, sae in enumerate(trials):
        codes = sae.codes(under).numpy()
        for name, values in _of_codes(codes, count, chosen, number).items():
            made.setdefault(name, []).append(values)
        if under is not base:
            before = sae.codes(base).numpy()
            made.setdefault("code_agreement", []).append((codes == before)[:count].astype(float))
            unique = node_scores(before[:count], before[count:], chosen.features)["unique"]
            made.setdefault("code_unique_base", []).append(unique)
    scores = {name: np.stack(values) for name, values in made.items() if name != "code_agreement"}
    truth = [str(case.group) for case in task.truth]
    effect, own = (np.stack([each[name] for each in cut]) for name in ("effect", "direct"))
    over = {
        "ablation_effect": (effect, truth),
        "direct_effect": (own, truth),
        "write_norm": (under[:count].norm(dim=-1).numpy(), task.groups),
        "write_change": ((under[:count] - under[count:]).norm(dim=-1).numpy(), task.groups),
    }
    scores |= {name: over[name][0].mean(0)[None] for name in ("direct_effect", "write_norm", "write_change")}
    heads = effect.shape[1]
    draw = np.random.default_rng(chosen.seed)
    scores["depth"] = (np.arange(heads) // session.n_heads)[None].astype(float)
    scores["random"] = draw.random((PERMUTED, heads))
    if under is not base:
        over["code_agreement"] = (np.stack(made["code_agreement"]).mean(0), task.groups)
    return Scored(scores, over, effect.mean(0)), _quality(trials, scores)


def _of_codes(codes: Any, count: int, chosen: Codes, trial: int) -> dict[str, Any]:
    """Return the scores of one trial's codes `[prompts, heads]`, the first `count` prompts positive."""
    positive, negative = codes[:count], codes[count:]
    found = {
        f"code_{name}": values for name, values in node_scores(positive, negative, chosen.features).items()
    }
    found["code_edges"] = edge_scores(positive, negative, chosen.features)
    draw = np.random.default_rng((chosen.seed, trial))
    shuffled = []
    for _ in range(PERMUTED):
        swap = draw.random(count)[:, None] < 0.5
        mixed = np.where(swap, negative, positive), np.where(swap, positive, negative)
        shuffled.append(node_scores(*mixed, chosen.features)["unique"])
    found["code_permuted"] = np.mean(shuffled, 0)
    found["distinct"] = np.array([len(np.unique(column)) for column in codes.T], float)
    return found


def _quality(trials: Sequence[Dictionary], scores: dict[str, Any]) -> dict[str, Interval]:
    """Return means over trials of what the SAEs explain and of how many codes a head has."""
    found = {
        "sae_explained": [each.explained for each in trials],
        "sae_l0": [each.l0 for each in trials],
        "codes_a_head": scores["distinct"].mean(1).tolist(),
    }
    return {
        name: Interval(float(np.mean(values)), float("nan"), float("nan"), len(values), len(values))
        for name, values in found.items()
    }


def _answered(task: Task, seen: dict[str, Any]) -> dict[str, Interval]:
    """Return what the model says on positive and on negative prompts."""
    found, count = {}, len(task.positive)
    for name, some in (("positive", slice(None, count)), ("negative", slice(count, None))):
        for metric in ("difference", "first_token", "choice"):
            said = "logit_diff" if metric == "difference" else metric
            found[f"{said}_{name}"] = clustered_mean(seen[metric][some].astype(float), task.groups)
    return found


def _prompt_rows(task: Task, seen: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the rows of `prompt_scores`."""
    prompts = (*task.positive, *task.negative)
    return "prompt_scores", {
        "task": TASK,
        "prompt_id": [prompt.id for prompt in prompts],
        "metric": "logit_diff",
        "value": seen["difference"].astype(float).tolist(),
    }


def _record(chosen: Codes) -> dict[str, Any]:
    """Return the fields of the run's record that say what the rows are about."""
    return {
        **policy_card(parse_policy(chosen.policy)),
        "kernel": chosen.kernel,
        "seed": chosen.seed,
        "prompt_set": chosen.task,
    }


def cost(setting: Setting) -> str:
    """Return what the analysis will run."""
    chosen: Codes = setting.parameters
    session, task = setting.model, task_of(setting.model, chosen)
    policies = len({chosen.base, chosen.policy})
    heads = session.n_layers * session.n_heads
    return (
        f"{policies * 2 * len(task.positive)} forward passes, {chosen.trials} SAEs of {chosen.features} features,"
        f" and {heads} heads cut one by one on {len(task.truth)} prompts (about half of the layers each)"
    )


ANALYSIS = Analysis(
    name="codes",
    question="do discrete codes of head outputs find the heads of a task, and do they find more than cheap scores?",
    parameters=Codes,
    find=find,
    cost=cost,
    show=show,
)
