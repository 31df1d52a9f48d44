"""Retrieval scores: which heads read the answer in the context at the steps that produce it.

Every run of a needle: the base policy answers freely; the produced tokens are then fed again, one decode call each,
under the policy that is measured, so that steps align. Wu et al. (arXiv 2404.15574): a head scores where the key that
it reads most lies in the answer's place and is the token the step produces. Runs that did not answer are left out and
counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sparselens.analyses.measured import Measured, measured
from sparselens.analyses.retrieval_watch import (
    Place,
    RetrievalWatch,
    answer_place,
    found_at,
    hits,
    recall,
    wu_scores,
)
from sparselens.analyses.roles.ground import Ground
from sparselens.kernels.kernel import Kernel
from sparselens.kernels.policy import Policy
from sparselens.workbench.execution import Execution
from sparselens.workbench.generation import stop_tokens, walked
from sparselens.workbench.prompt import Prompt
from sparselens.workbench.session import Session

ANSWERED = 0.5
"""A run counts if more than this share of the answer's tokens was produced."""
MORE = 12
"""Tokens that may be produced beyond the answer's number."""

DEFINITIONS = {
    "retrieval": "Wu et al.: hits ÷ the answer's tokens, over all produced tokens; a hit is a step whose most read key "
    "lies in the answer's place in the needle and is the produced token; mean over answered runs",
    "retrieval_set": "the same, share of the answer's different tokens that were hit (the paper's formula; "
    "`retrieval` is the authors' code)",
    "retrieval_active": "share of answered runs with at least one hit",
    "retrieval_find": "share of answered runs with a hit at the step that produces the answer's first token",
    "retrieval_copy": "share of hits at the steps that produce the answer's later tokens, mean over answered runs",
    "needle_mass": "mean attention to the answer's place in the needle, at the steps that produce the answer",
    "needle_kept": "mean share of the answer's place in the needle that the policy kept at these steps",
}
ROWS = {"retrieval_find": "span:answer", "retrieval_copy": "span:answer"}


@dataclass(frozen=True, eq=False)
class Answered:
    """One run: what was produced (by the base policy), and whether that answers the prompt."""

    prompt: Prompt
    place: Place
    produced: tuple[int, ...]

    @property
    def question(self) -> tuple[int, ...]:
        """The prompt without its teacher-forced answer."""
        return self.prompt.token_ids[: len(self.prompt) - len(self.prompt.answer_ids)]

    @property
    def counts(self) -> bool:
        """Whether more than half of the answer was produced."""
        return recall(self.prompt.answer_ids, self.produced) > ANSWERED

    @property
    def start(self) -> int | None:
        """The step at which the whole answer begins, None where it was not produced word by word."""
        return found_at(self.prompt.answer_ids, self.produced)


def on_needles(ground: Ground) -> list[Measured]:
    """Return the retrieval scores; none where no run was answered (`outcome` says how many were)."""
    material, chosen = ground.plan.needles, ground.chosen
    ground.bar.says(material.call)
    runs, numbers = [], []
    for prompt in material.prompts:
        place = answer_place(prompt)
        if place is None:
            raise ValueError(f"the answer of {prompt.name} does not stand in its needle")
        key = f"needle {chosen.base} {MORE}"

        def compute(prompt: Prompt = prompt, place: Place = place) -> dict[str, Any]:
            return one_run(ground.session, prompt, place, chosen.base, chosen.policy, ground.kernel)

        found = ground.once(key, prompt, compute)
        ground.counted(found)
        runs.append(Answered(prompt, place, tuple(found["produced"].tolist())))
        numbers.append(found)
    ground.notes["needles"] = outcome(runs)
    counted = [(run, found) for run, found in zip(runs, numbers, strict=True) if run.counts]
    params = {**ground.conventions, "base": chosen.base, **outcome(runs)}
    return [] if not counted else [*_scores(counted, material.call, params)]


def outcome(runs: Sequence[Answered]) -> dict[str, int]:
    """Return how many runs there were, how many answered, how many word by word, how many places were inexact."""
    return {
        "n_runs": len(runs),
        "n_answered": sum(run.counts for run in runs),
        "n_verbatim": sum(run.start is not None for run in runs),
        "n_inexact_place": sum(not run.place.exact for run in runs),
    }


def _scores(
    counted: Sequence[tuple[Answered, Mapping[str, Any]]], prompt_set: str, params: dict[str, Any]
) -> list[Measured]:
    """Return the metrics over the answered runs."""
    made = []
    for metric, definition in DEFINITIONS.items():
        taken = [(run, found[metric]) for run, found in counted if not np.isnan(found[metric]).any()]
        if not taken:
            continue
        made.append(
            measured(
                metric,
                np.stack([values for _, values in taken]),
                [run.prompt.group or run.prompt.id for run, _ in taken],
                prompt_set=prompt_set,
                rows=ROWS.get(metric, "generated"),
                definition=definition,
                params=params,
            )
        )
    return made


@torch.no_grad()
def one_run(
    session: Session,
    prompt: Prompt,
    place: Place,
    base: Policy | str,
    policy: Policy | str,
    kernel: Kernel | str,
) -> dict[str, Any]:
    """Return what was produced under `base`, and the scores `[layers · heads]` of its run under `policy`."""
    question = torch.tensor([prompt.token_ids[: len(prompt) - len(prompt.answer_ids)]])
    watch = RetrievalWatch(torch.tensor(place.positions))
    most, stop = len(prompt.answer_ids) + MORE, stop_tokens(session)
    same = str(base) == str(policy)
    with session.under(base, kernel=kernel, observers=[watch] if same else []) as execution:
        produced = walked(session, question, max_new_tokens=most, stop=stop)
    if not same:
        with session.under(policy, kernel=kernel, observers=[watch]) as execution:
            walked(session, question, forced=produced)
    run = Answered(prompt, place, tuple(produced))
    return {"produced": np.array(produced), **scores_of(run, watch), **_calls(execution)}


def scores_of(run: Answered, watch: RetrievalWatch) -> dict[str, Any]:
    """Return the scores of one run `[layers · heads]`; NaN where it says nothing (no later token, not verbatim)."""
    strongest, mass, kept = watch.stacked()
    answer, start = run.prompt.answer_ids, run.start
    hit = hits(strongest, run.place.positions, run.question, run.produced)
    total, different = wu_scores(hit, answer, run.produced)
    nothing = torch.full_like(total, torch.nan)
    found = {"retrieval": total, "retrieval_set": different, "retrieval_active": hit.any(0).float()}
    if start is None:
        steps = hit.shape[0]
        found |= {"retrieval_find": nothing, "retrieval_copy": nothing}
        answering = slice(0, steps)
    else:
        answering = slice(start, start + len(answer))
        later = hit[start + 1 : answering.stop].float()
        found["retrieval_find"] = hit[start].float()
        found["retrieval_copy"] = later.mean(0) if len(later) else nothing
    found["needle_mass"] = mass[answering].sum(-1).mean(0)
    found["needle_kept"] = kept[answering].float().mean((0, -1))
    return {name: values.flatten().numpy() for name, values in found.items()}


def _calls(execution: Execution) -> dict[str, Any]:
    return {"calls": np.array([execution.dense_calls, execution.calls])}
