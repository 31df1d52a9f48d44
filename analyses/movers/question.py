"""`analyse movers`: which heads bring an answer to the place where it is said, and from where they take it.

For facts: from the subject or from the question (Geva et al. 2023, arXiv 2304.14767). For multiple choice: from the
right option's letter (Lieberum et al. 2023, arXiv 2307.09458). Every head's direct effect on answer − foil is split by
source tokens, under base and policy; the largest are cut against random heads of the same layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sparselens.analyses.analysis import Analysis, Findings, Setting
from sparselens.analyses.circuit.port import ports_of
from sparselens.analyses.movers.cut import Cut, Fold, cut_all, folds_of, intervention_rows
from sparselens.analyses.movers.measure import measured_case
from sparselens.analyses.movers.plan import TIMES_CHANCE, Case, Movers, cases
from sparselens.analyses.movers.rows import (
    TASK,
    Block,
    Numbers,
    choice_rows,
    eval_rows,
    head_rows,
    model_numbers,
    used_numbers,
)
from sparselens.analyses.movers.show import show
from sparselens.kernels.head import head_name
from sparselens.kernels.policy import parse as parse_policy
from sparselens.workbench.progress import Progress
from sparselens.workbench.run_card import policy_card
from sparselens.workbench.session import Session

Once = Callable[[str, Case, Callable[[], Mapping[str, Any]]], dict[str, Any]]
"""Returns the numbers that are kept under a key and a case, else computes them."""


def find(setting: Setting) -> Findings:
    """Measure every clean prompt, then cut heads on those that the base answers."""
    chosen: Movers = setting.parameters
    every = cases(setting.model, chosen)
    with Progress(len({chosen.base, chosen.policy}) * len(every), 0, enabled=setting.progress) as bar:

        def once(key: str, case: Case, compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
            bar.says(f"{key[:20]} · {case.prompt.name}")
            found = setting.ledger.once(f"{key} {case.prompt.id}", compute)
            bar.advance(len(case.prompt))
            return found

        before, after = _measured(setting.model, every, chosen, once, bar)
        answered, why_not = _answered(every, before)
        found = model_numbers(every, before, after, answered, chosen)
        extra: dict[str, Any] = {
            "n_prompts": len(every), "n_answered": int(answered.sum()), "not_applicable": why_not
        }  # fmt: skip
        blocks: list[Block] = []
        if every[0].labels:
            blocks, more, said = choice_rows(every, before, after, chosen, setting.model.n_layers)
            found, extra = found | more, extra | {"best": said}
        if not why_not:
            places = np.flatnonzero(answered).tolist()
            used = [every[at] for at in places]
            then: Numbers = [before[at] for at in places]
            now: Numbers = [after[at] for at in places]
            found |= used_numbers(used, then, now, chosen)
            blocks += head_rows(used, then, now, chosen, setting.model.n_layers)
            made, heads = _cut(setting.model, used, now, chosen, once)
            blocks, extra = blocks + made, extra | {"cut": heads}
    blocks += [eval_rows(found), _prompt_rows(every, after)]
    return Findings(blocks, _record(chosen) | {"extra": extra}, [case.prompt for case in every])


def _measured(
    session: Session, every: Sequence[Case], chosen: Movers, once: Once, bar: Progress
) -> tuple[Numbers, Numbers]:
    """Return the numbers of every case under the base and under the policy."""
    ports = ports_of(session)
    found: dict[str, list[dict[str, Any]]] = {}
    for policy in dict.fromkeys((chosen.base, chosen.policy)):
        for case in every:

            def compute(policy: str = policy, case: Case = case) -> dict[str, Any]:
                return measured_case(session, ports, case, policy, chosen.kernel)

            found.setdefault(policy, []).append(once(policy, case, compute))
            bar.finished_prompt()
    return found[chosen.base], found[chosen.policy]


def _cut(
    session: Session, used: Sequence[Case], numbers: Numbers, chosen: Movers, once: Once
) -> tuple[list[Block], list[list[str]]]:
    """Return the rows of what cutting heads does, and the heads of each half."""
    direct = np.stack([np.asarray(each["direct"], float).sum(0) for each in numbers])
    shape = (session.n_layers, session.n_heads)
    folds = folds_of([case.group for case in used], direct, shape, chosen)
    cuts = cut_all(session, used, folds, chosen, once)
    blocks: list[Block] = [
        ("interventions", intervention_rows(folds, cuts, chosen)),
        ("intervention_prompts", _cut_prompts(used, folds, cuts)),
    ]
    return blocks, [[head_name(head) for head in fold.heads] for fold in folds]


def _answered(every: Sequence[Case], before: Numbers) -> tuple[Any, str]:
    """Return which prompts the base answers, and why nothing more is asked where it answers too few."""
    name = "choice" if every[0].labels else "first_token"
    right = np.array([bool(each[name]) for each in before])
    share, chance = float(right.mean()), float(np.mean([case.chance for case in every]))
    enough = min(TIMES_CHANCE * chance, (1 + chance) / 2)  # of two options twice chance is always
    if every[0].labels and share < enough:
        return right, (
            f"not applicable on this model: the base chooses the right option in {share:.0%} of {len(every)} prompts,"
            f" chance is {chance:.0%}, {enough:.0%} are asked for"
        )
    groups = {case.group for case, now in zip(every, right, strict=True) if now}
    if len(groups) < 2:
        return right, (
            f"not applicable on this model: the base answers {int(right.sum())} of {len(every)} prompts, in"
            f" {len(groups)} groups; two are needed"
        )
    return right, ""


def _cut_prompts(used: Sequence[Case], folds: Sequence[Fold], cuts: Sequence[Cut]) -> dict[str, list[Any]]:
    """Return the columns of `intervention_prompts`: as it is, without the chosen heads, mean over random ones."""
    columns: dict[str, list[Any]] = {name: [] for name in ("trial", "fold", "prompt_id", "metric", "value")}
    for fold, cut in zip(folds, cuts, strict=True):
        for at, values in zip(fold.tested, cut.values, strict=True):
            for trial, value in enumerate((values[0], values[1], values[2:].mean())):
                row = (trial, fold.number, used[at].prompt.id, "logit_diff", float(value))
                for name, cell in zip(columns, row, strict=True):
                    columns[name].append(cell)
    return columns


def _prompt_rows(every: Sequence[Case], after: Numbers) -> Block:
    """Return the rows of `prompt_scores`: logit difference and what is answered, under the policy."""
    rows = [
        (case.prompt.id, metric, float(each[source]))
        for case, each in zip(every, after, strict=True)
        for metric, source in (
            ("logit_diff", "difference"), ("first_token", "first_token"), ("choice", "choice")
        )
    ]  # fmt: skip
    names = ("prompt_id", "metric", "value")
    return "prompt_scores", {"task": TASK} | dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def _record(chosen: Movers) -> dict[str, Any]:
    """Return the fields of the run's record that say what the rows are about."""
    return {
        **policy_card(parse_policy(chosen.policy)),
        "kernel": chosen.kernel,
        "seed": chosen.seed,
        "prompt_set": chosen.prompts,
    }


def cost(setting: Setting) -> str:
    """Return what the analysis will run."""
    chosen: Movers = setting.parameters
    every = cases(setting.model, chosen)
    policies = len({chosen.base, chosen.policy})
    passes = policies + 1 + chosen.references + 1 + chosen.draws
    tokens = sum(len(case.prompt) for case in every)
    return (
        f"{len(every)} prompts, at most {passes} forward passes each ({passes * tokens:,} tokens through"
        f" {setting.model.n_layers} layers): {policies} watched, the others to cut heads on those that are answered"
    )


ANALYSIS = Analysis(
    name="movers",
    question="which heads bring an answer to where it is said, from which tokens, and what does a policy drop of it?",
    parameters=Movers,
    find=find,
    cost=cost,
    show=show,
)
