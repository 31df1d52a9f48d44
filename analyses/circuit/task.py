"""Tasks: pairs of prompts that differ in what decides the answer, how an answer is judged, and which reads matter."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from sparselens.analyses.circuit.patch import LogitDifference, Metric, Pair, ProbabilityDifference
from sparselens.workbench.prompt import Prompt
from sparselens.workbench.prompt_set import PromptSet, is_call, parse

GIVEN = ("n", "filler", "references", "seed")
"""Parameters of every task's prompt set that are the analysis' own."""


@dataclass(frozen=True)
class Task:
    """A task: its prompt set's name, what is measured in words, and the reads that matter.

    `reads` are pairs of places, row and key: names of spans, `S1+1` for the token after one. `probability`: what is
    measured is a difference of probabilities rather than of logits.
    """

    name: str
    metric: str
    reads: tuple[tuple[str, str], ...]
    probability: bool = False


TASKS = {
    task.name: task
    for task in (
        Task(
            "ioi",
            "logit of the indirect object − logit of the subject",
            (
                ("END", "IO"),
                ("END", "S1"),
                ("END", "S2"),
                ("S2", "S1"),
                ("S2", "S1+1"),
                ("S1+1", "S1"),
                ("IO+1", "IO"),
            ),
        ),
        Task(
            "greater_than",
            "probability of the digits above the tens digit − of those below",
            (("END", "tens"), ("END", "unit"), ("END", "century"), ("unit", "tens")),
            probability=True,
        ),
        Task(
            "copying",
            "logit of the word that followed − mean logit of the other words",
            (("END", "B"), ("END", "A"), ("B", "A")),
        ),
    )
}


def prompt_set(task: str, **given: Any) -> PromptSet:
    """Return the prompt set of a task, a name or a call such as `copying(words=20)`, with these parameters.

    Raises `ValueError` where there is no such task, listing those there are.
    """
    name = task.partition("(")[0].strip()
    if name not in TASKS or not is_call(task):
        raise ValueError(f"circuit has no task {task!r}; there are {', '.join(TASKS)}")
    written = [each for each in GIVEN if re.search(rf"\b{each}\s*=", task)]
    if written:
        raise ValueError(f"circuit: {written[0]} is a parameter of the analysis, not of its task {task}")
    return replace(parse(task), **given)


def needed(chance: float) -> float:
    """Return the least accuracy at which a task counts: twice chance, or halfway from chance to 1 if that is less."""
    return min(2 * chance, (1 + chance) / 2)


@dataclass(frozen=True, eq=False)
class Case:
    """A clean prompt with its references; `right` and `wrong` are first tokens of right and wrong answers.

    `cluster` is what the bootstrap draws as a whole: the prompt's group, else the pair.
    """

    task: Task
    clean: Prompt
    references: tuple[Prompt, ...]
    right: tuple[int, ...]
    wrong: tuple[int, ...]
    cluster: str

    @property
    def chance(self) -> float:
        """How often a guess is right: one of the candidates; half of the time where two probabilities are compared."""
        return 0.5 if self.task.probability else len(self.right) / (len(self.right) + len(self.wrong))

    @property
    def logits(self) -> LogitDifference:
        """The logit difference of right and wrong, which direct attribution is of."""
        return LogitDifference(self.right, self.wrong)

    @property
    def pair(self) -> Pair:
        """What is patched."""
        metric: Metric = (
            ProbabilityDifference(self.right, self.wrong) if self.task.probability else self.logits
        )
        return Pair(self.clean, self.references, metric)

    def judged(self, logits: Tensor) -> bool:
        """Return whether a row of logits `[vocabulary]` answers right: one of the right tokens before all wrong ones.

        For a difference of probabilities: the right ones have more of it than the wrong ones.
        """
        right, wrong = logits[list(self.right)], logits[list(self.wrong)]
        if self.task.probability:
            return bool(right.logsumexp(0) > wrong.logsumexp(0))
        return bool(right.max() > wrong.max())

    def places(self) -> list[tuple[int, int]]:
        """Return row and key of each of the task's reads."""
        return [(place(self.clean, row), place(self.clean, key)) for row, key in self.task.reads]


def place(prompt: Prompt, name: str) -> int:
    """Return the position that a span's name, or a name with `+1`, stands for."""
    span, _, further = name.partition("+")
    return prompt.spans[span][0] + int(further or 0)


def cases(prompts: Sequence[Prompt], task: Task) -> list[Case]:
    """Return the cases that clean prompts and the references after them make; `ValueError` on a lonely prompt."""
    by_pair: dict[str | None, list[Prompt]] = {}
    for prompt in prompts:
        by_pair.setdefault(prompt.pair_id, []).append(prompt)
    found = []
    for pair_id, (clean, *references) in by_pair.items():
        if not references or clean.metadata["role"] != "clean":
            raise ValueError(f"circuit: the prompts {pair_id} have no clean one with references after it")
        right = tuple(clean.metadata.get("right", clean.answer_ids[:1]))
        found.append(
            Case(task, clean, tuple(references), right, clean.foils, clean.group or str(clean.pair_id))
        )
    return found


def halves(found: Sequence[Case]) -> tuple[list[Case], list[Case]]:
    """Return the cases that scores are made on, and those that test: every other cluster.

    Raises `ValueError` where there are fewer than two clusters.
    """
    names = list(dict.fromkeys(case.cluster for case in found))
    if len(names) < 2:
        raise ValueError(
            f"circuit: {len(found)} prompts are of one template, and one half of the templates tests what the other"
            " finds: give a larger n"
        )
    searched = set(names[::2])
    return [case for case in found if case.cluster in searched], [
        case for case in found if case.cluster not in searched
    ]
