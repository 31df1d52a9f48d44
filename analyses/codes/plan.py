"""What `analyse codes` runs: its parameters, and the positive and negative prompts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sparselens.analyses.movers.plan import Case, references, sources
from sparselens.kernels.policy import parse as parse_policy
from sparselens.workbench.prompt import Prompt
from sparselens.workbench.prompt_set import parse as parse_prompts
from sparselens.workbench.session import Session

ROWS = ("all", "end")


@dataclass(frozen=True)
class Codes:
    """`task`: a built-in set of clean and corrupt pairs, by name (then of `n` pairs) or as a call.

    `rows`: what a head writes in mean over all tokens (`all`, as the authors have it), or at the last one (`end`).

    An SAE of `features` is trained on all heads of `examples` prompts under `base`, `steps` batches of `batch` vectors;
    `sparsity` is the coefficient of its L1 penalty beside the mean squared error (mean over dimensions, as the authors
    have it); `trials` of them, each on other examples. Each head is cut on `truth` prompts; a cut head writes its mean
    over up to `references` corrupt prompts. The heads that matter are those of largest effect, as many as each of
    `circuit` says.
    """

    policy: str = "dense"
    base: str = "dense"
    kernel: str = "blocked"
    task: str = "ioi"
    n: int = 96
    rows: str = "all"
    features: int = 200
    examples: int = 10
    trials: int = 5
    steps: int = 500
    batch: int = 512
    sparsity: float = 0.02
    truth: int = 8
    references: int = 2
    circuit: tuple[int, ...] = (26, 13, 52)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("policy", "base"):
            object.__setattr__(self, name, str(parse_policy(getattr(self, name))))
        if self.rows not in ROWS:
            raise ValueError(f"codes: rows is one of {', '.join(ROWS)}, not {self.rows!r}")
        task = f"{self.task}(n={self.n})" if re.fullmatch(r"\w+", self.task) else self.task
        object.__setattr__(self, "task", str(parse_prompts(task)))
        counts = (self.n, self.features, self.trials, self.steps, self.batch, self.truth, self.references)
        if min(*counts, *self.circuit) < 1 or self.examples < 2 or self.sparsity < 0:
            raise ValueError("codes: counts are at least 1, examples at least 2, sparsity not negative")


@dataclass(frozen=True)
class Task:
    """The positive prompts, a negative one for each, and the cases that heads are cut on."""

    positive: tuple[Prompt, ...]
    negative: tuple[Prompt, ...]
    truth: tuple[Case, ...]

    @property
    def groups(self) -> list[str]:
        """The group of each pair."""
        return [str(prompt.group or prompt.id) for prompt in self.positive]


def task_of(session: Session, chosen: Codes) -> Task:
    """Return the prompts; `ValueError` where the set has no pairs with answers and foils, or too few for the SAE."""
    prompts = session.prompts(chosen.task)
    clean = [prompt for prompt in prompts if prompt.metadata.get("role") == "clean"]
    corrupt = [prompt for prompt in prompts if prompt.metadata.get("role") == "corrupt"]
    own = {prompt.pair_id: prompt for prompt in reversed(corrupt)}
    if not clean or not all(prompt.answer_ids and prompt.foils and prompt.pair_id in own for prompt in clean):
        raise ValueError(
            f"codes: {chosen.task} has no clean and corrupt pairs with answers and foils: ioi, copying and facts have"
        )
    if 2 * len(clean) <= chosen.examples:
        raise ValueError(
            f"codes: {2 * len(clean)} prompts are not more than the {chosen.examples} examples that the SAE sees"
        )
    truth = tuple(
        Case(prompt, references(prompt, corrupt, chosen.references), sources(prompt))
        for prompt in in_turn(clean)[: chosen.truth]
    )
    return Task(tuple(clean), tuple(own[prompt.pair_id] for prompt in clean), truth)


def in_turn(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Return the prompts so that the groups take turns."""
    by_group: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        by_group.setdefault(str(prompt.group or prompt.id), []).append(prompt)
    places = {prompt.id: place for some in by_group.values() for place, prompt in enumerate(some)}
    return sorted(prompts, key=lambda prompt: places[prompt.id])
