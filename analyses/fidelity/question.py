"""`analyse fidelity --run RUN`: how faithful a run is to its base, against the noise floor.

What heads write and what tokens cost comes from the tables of the paired capture. The model runs for what these do not
have: the base against itself (`fidelity_noise`), needle runs step by step and free answers (`fidelity_needle`).
"""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np

from sparselens.analyses.analysis import Analysis, Findings, Setting
from sparselens.analyses.fidelity.floor import NOISE, kinds, noise_heads, noise_tokens
from sparselens.analyses.fidelity.needle import Needle, needle_numbers
from sparselens.analyses.fidelity.noise import Floor
from sparselens.analyses.fidelity.plan import Fidelity, Plan
from sparselens.analyses.fidelity.retained import DEFINITIONS, needle_blocks
from sparselens.analyses.fidelity.role import role_blocks
from sparselens.analyses.fidelity.show import counted, show
from sparselens.analyses.fidelity.table import TOKENS, head_scores, score_blocks, token_scores
from sparselens.analyses.runs import carried
from sparselens.kernels.kernel import kernel as kernel_named
from sparselens.storage.reader import connect
from sparselens.workbench.progress import Progress
from sparselens.workbench.prompt import Prompt

ANSWERS = {
    "needle_accuracy_forced": "share of needle prompts whose answer is greedy token by token, given the answer before",
    "needle_accuracy_free": "share of needle prompts that the model, generating by itself, answers word by word",
}
"""Over the same prompts; `_base`: of the base."""


def find(setting: Setting) -> Findings:
    """Compare the run with its base, and the base with itself."""
    session, plan = setting.model, Plan.of(setting)
    pair, prompts, dtype = plan.pair, plan.prompts, str(session.dtype)
    with connect(setting.trace.path) as connection:
        blocks = head_scores(connection, pair, prompts)
        scores = token_scores(connection, pair, prompts, setting.parameters.bucket)
        of_roles, commands = role_blocks(setting.trace, connection, pair)
    with Progress(len(plan.floor) + len(plan.needles), plan.tokens, enabled=setting.progress) as bar:
        floor, units = _floor(setting, plan, bar), _needles(setting, plan, bar)
    sets = prompts.sets_of([each.prompt.id for each, _ in units])
    retained, counts = needle_blocks(pair, units, session.n_heads, sets)
    scores |= noise_tokens(plan, floor, dtype) | _answers(plan, units)
    blocks += [*noise_heads(plan, floor, session.n_heads, dtype), *retained, *of_roles]
    return Findings([*blocks, *score_blocks(scores, prompts)], _record(plan, setting, counts, commands))


def _floor(setting: Setting, plan: Plan, bar: Progress) -> list[tuple[str, dict[str, Any]]]:
    """Return the ids of the floor's prompts and their numbers."""
    made = []
    with closing(Floor(setting.model, plan.pair.base_policy, kernel_named(plan.pair.kernel))) as floor:
        for number, prompt in enumerate(plan.floor):
            bar.says(f"noise floor · {prompt.name}")
            dtype = number < setting.parameters.dtype_noise

            def compute(prompt: Prompt = prompt, dtype: bool = dtype) -> dict[str, Any]:
                return floor.numbers(prompt, dtype=dtype)

            made.append((prompt.id, setting.ledger.once(f"noise {dtype} {prompt.id}", compute)))
            bar.advance(len(prompt))
            bar.finished_prompt()
    return made


def _needles(setting: Setting, plan: Plan, bar: Progress) -> list[tuple[Needle, dict[str, Any]]]:
    """Return the numbers of every needle prompt."""
    session, pair = setting.model, plan.pair
    kernel, made = kernel_named(pair.kernel), []
    for needle in plan.needles:
        bar.says(f"needle · {needle.prompt.name}")

        def compute(needle: Needle = needle) -> dict[str, Any]:
            return needle_numbers(session, needle, pair.base_policy, pair.policy, kernel, free=plan.free)

        made.append((needle, setting.ledger.once(f"needle {plan.free} {needle.prompt.id}", compute)))
        bar.advance(len(needle.prompt))
        bar.finished_prompt()
    return made


def _answers(plan: Plan, units: list[tuple[Needle, dict[str, Any]]]) -> dict[str, Any]:
    """Return who answered the needles, free and teacher-forced, by prompt `[prompts]`; nothing without needles."""
    found: dict[str, Any] = {}
    for side, suffix in (("run", ""), ("base", "_base")):
        forced = plan.answers.get(("answer_forced", side), {})
        stored = plan.answers.get(("answer_generated", side), {})
        for needle, unit in units:
            prompt = needle.prompt.id
            free = (
                float(unit["free"][("base", "run").index(side)]) if plan.free else stored.get(prompt, np.nan)
            )
            values = {"needle_accuracy_forced": forced.get(prompt, np.nan), "needle_accuracy_free": free}
            for name, value in values.items():
                target = found.setdefault(f"{name}{suffix}", plan.prompts.nothing())
                target[plan.prompts.place([prompt])] = value
    return found


def _record(plan: Plan, setting: Setting, counts: dict[str, int], commands: list[str]) -> dict[str, Any]:
    """Return the record of the analysis run: what was compared on how many prompts, and what is missing."""
    chosen: Fidelity = setting.parameters
    of = zip(
        kinds(plan.pair, str(setting.model.dtype)).items(), (chosen.noise, chosen.dtype_noise), strict=True
    )
    extra = {
        "definitions": TOKENS | NOISE | DEFINITIONS | ANSWERS,
        "noise": {
            kind: {"suffix": suffix, "what": words, "prompts": min(most, len(plan.floor))}
            for (kind, (suffix, words)), most in of
        },
        "needles": counts
        | {"prompts": len(plan.needles), "free": "generated" if plan.free else "as captured"},
        "roles_missing": commands,
    }
    record = carried(plan.pair.run.record)
    return record | {"parents": [plan.pair.run.run_id, plan.pair.base.run_id], "extra": extra}


def cost(setting: Setting) -> str:
    """Return what the analysis will read and run."""
    plan, chosen = Plan.of(setting), setting.parameters
    floor = f"the base's noise floor on {counted(len(plan.floor))}, run under two kernels"
    if dtypes := min(chosen.dtype_noise, len(plan.floor)):
        floor += f", {dtypes} of them in another dtype as well"
    needles = counted(len(plan.needles), "needle prompt") if plan.needles else "no needle prompts"
    if plan.needles:
        needles += " under base and policy" + (
            ", answered once more by the policy alone" if plan.free else ""
        )
    return f"tables of {counted(len(plan.prompts.ids))}; {floor}; {needles}"


ANALYSIS = Analysis(
    name="fidelity",
    question="how faithful is a run to its base, against the noise floor?",
    parameters=Fidelity,
    find=find,
    cost=cost,
    show=show,
    model_of_run=True,
)
