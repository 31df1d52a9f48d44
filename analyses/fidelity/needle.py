"""Needle runs under the base and under the policy: which heads still read the answer, and whether it is still given.

The base answers freely; the tokens it produced are fed again under the policy, so that steps align. What the policy
answers by itself is another run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sparselens.analyses.retrieval_watch import Place, RetrievalWatch, answer_place
from sparselens.analyses.roles.retrieval import MORE, Answered, scores_of
from sparselens.kernels.kernel import Kernel
from sparselens.kernels.policy import Policy
from sparselens.workbench.generation import continue_greedily, stop_tokens, walked
from sparselens.workbench.prompt import Prompt
from sparselens.workbench.session import Session

SCORES = ("retrieval", "retrieval_find", "retrieval_copy", "needle_mass", "needle_kept")


@dataclass(frozen=True, eq=False)
class Needle:
    """One needle prompt and where its answer stands in the needle (None: not as such tokens)."""

    prompt: Prompt
    place: Place | None

    @classmethod
    def among(cls, prompts: Sequence[Prompt], most: int) -> list[Needle]:
        """Return the needle prompts (an answer, and the spans `needle` and `answer`): `most` of them, by id."""
        found = [
            prompt for prompt in prompts if prompt.answer_ids and {"needle", "answer"} <= set(prompt.spans)
        ]
        ordered = sorted(found, key=lambda prompt: prompt.id)[:most]
        return [cls(prompt, answer_place(prompt)) for prompt in ordered]


def needle_numbers(
    session: Session, needle: Needle, base: Policy, policy: Policy, kernel: Kernel, *, free: bool
) -> dict[str, Any]:
    """Return the numbers of one needle prompt.

    Where its answer stands in the needle: `produced` by the base, and of both sides, `base` and `run`, `SIDE SCORE` and
    `SIDE strongest` `[layers · heads]`. With `free`: `free [2]`, whether base and policy by themselves begin with the
    answer.
    """
    found: dict[str, Any] = {}
    if needle.place is not None:
        found |= _aligned(session, needle.prompt, needle.place, base, policy, kernel)
    if free:
        by_base = (
            begins_with(needle.prompt.answer_ids, found["produced"].tolist())
            if found
            else answers_itself(session, needle.prompt, base, kernel)
        )
        found["free"] = np.asarray([by_base, answers_itself(session, needle.prompt, policy, kernel)])
    return found


@torch.no_grad()
def _aligned(
    session: Session, prompt: Prompt, place: Place, base: Policy, policy: Policy, kernel: Kernel
) -> dict[str, Any]:
    """Return what the base produced, and the scores of both sides on it.

    `strongest`: position of the key read most at the step that produces the answer's first token, −1 where the base
    did not produce the answer word by word.
    """
    question = torch.tensor([prompt.token_ids[: len(prompt) - len(prompt.answer_ids)]])
    most = len(prompt.answer_ids) + MORE
    produced: list[int] = []
    found: dict[str, Any] = {}
    for side, each in (("base", base), ("run", policy)):
        watch = RetrievalWatch(torch.tensor(place.positions))
        with session.under(each, kernel=kernel, observers=[watch]):
            if side == "base":
                produced = walked(session, question, max_new_tokens=most, stop=stop_tokens(session))
            else:
                walked(session, question, forced=produced)
        run = Answered(prompt, place, tuple(produced))
        scores = scores_of(run, watch)
        found |= {f"{side} {name}": scores[name] for name in SCORES}
        strongest, _, _ = watch.stacked()
        first = torch.full_like(strongest[0], -1) if run.start is None else strongest[run.start]
        found[f"{side} strongest"] = first.flatten().numpy()
    return found | {"produced": np.asarray(produced)}


def answers_itself(session: Session, prompt: Prompt, policy: Policy, kernel: Kernel) -> bool:
    """Return whether the model under `policy`, generating greedily, begins with the answer's very tokens."""
    answer = prompt.answer_ids
    produced = continue_greedily(session, prompt, policy, kernel, max_new_tokens=len(answer))
    return begins_with(answer, produced)


def begins_with(answer: Sequence[int], produced: Sequence[int]) -> bool:
    """Return whether what was produced begins with the answer."""
    return tuple(produced[: len(answer)]) == tuple(answer)
