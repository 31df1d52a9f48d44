"""What `analyse movers` runs: its parameters, the prompts, and the source tokens that are told apart."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sparselens.analyses.circuit.patch import LogitDifference
from sparselens.kernels.policy import parse as parse_policy
from sparselens.workbench.prompt import Prompt
from sparselens.workbench.prompt_set import parse as parse_prompts
from sparselens.workbench.session import Session

TIMES_CHANCE = 2.0
"""A task of several options is taken for solved where the base is right so many times as often as chance."""


@dataclass(frozen=True)
class Movers:
    """`prompts`: a built-in set of clean and corrupt pairs with answers and foils, such as facts or letters.

    The `heads` of largest direct effect are cut together, against `draws` sets of random heads of the same layers; a
    cut head writes its mean over up to `references` corrupt prompts. `validation`: the share of the groups on which the
    best head by QK-score is chosen.
    """

    policy: str = "dense"
    base: str = "dense"
    kernel: str = "blocked"
    prompts: str = "facts(n=10)"
    heads: int = 8
    draws: int = 8
    references: int = 2
    validation: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("policy", "base"):
            object.__setattr__(self, name, str(parse_policy(getattr(self, name))))
        object.__setattr__(self, "prompts", str(parse_prompts(self.prompts)))
        if min(self.heads, self.draws, self.references) < 1:
            raise ValueError("movers: heads, draws and references are at least 1")
        if not 0 < self.validation < 1:
            raise ValueError(f"movers: validation is a share between 0 and 1, not {self.validation}")


@dataclass(frozen=True)
class Case:
    """A clean prompt and the corrupt ones that cut heads are taken from.

    `sources`: positions before the answer, by the part of the prompt that they belong to; together all of them.
    """

    prompt: Prompt
    references: tuple[Prompt, ...]
    sources: Mapping[str, tuple[int, ...]]

    @property
    def group(self) -> str:
        """What the bootstrap draws as a whole."""
        return self.prompt.group or self.prompt.id

    @property
    def metric(self) -> LogitDifference:
        """The answer's logit minus the mean of the foils'."""
        return LogitDifference((self.prompt.answer_ids[0],), self.prompt.foils)

    @property
    def row(self) -> int:
        """The row that predicts the answer."""
        return len(self.prompt) - len(self.prompt.answer_ids) - 1

    @property
    def chance(self) -> float:
        """How often a blind choice among answer and foils is right."""
        return 1 / (1 + len(self.prompt.foils))

    @property
    def labels(self) -> list[tuple[int, int]]:
        """The letter and the end of line of each option, the right one first; empty where there are no options."""
        spans = self.prompt.spans
        names = ["right", *sorted(name for name in spans if re.fullmatch(r"wrong\d+", name))]
        if not all(name in spans and f"{name}_end" in spans for name in names):
            return []
        return [(spans[name][0], spans[f"{name}_end"][0]) for name in names]


def group_of(part: str) -> str:
    """Return what the direct effect of a part is added to: an option's letter, word and end of line are one group."""
    return part.partition("_")[0]


def groups_of(parts: Sequence[str]) -> dict[str, list[int]]:
    """Return the places of the parts of each group."""
    found: dict[str, list[int]] = {}
    for place, part in enumerate(parts):
        found.setdefault(group_of(part), []).append(place)
    return found


def cases(session: Session, chosen: Movers) -> list[Case]:
    """Return a case for every clean prompt; `ValueError` where the set has no such pairs, or parts differ."""
    prompts = session.prompts(chosen.prompts)
    clean = [prompt for prompt in prompts if prompt.metadata.get("role") == "clean"]
    corrupt = [prompt for prompt in prompts if prompt.metadata.get("role") == "corrupt"]
    if not clean or not all(prompt.answer_ids and prompt.foils for prompt in clean):
        raise ValueError(
            f"movers: {chosen.prompts} has no clean and corrupt pairs with answers and foils: facts and letters have"
        )
    made = [Case(prompt, references(prompt, corrupt, chosen.references), sources(prompt)) for prompt in clean]
    parts = set(made[0].sources)
    for case in made:
        if set(case.sources) != parts:
            raise ValueError(f"movers: {case.prompt.name} has other spans than {made[0].prompt.name}")
    if len({case.group for case in made}) < 2:
        raise ValueError(f"movers: all prompts are of the group {made[0].group}: give two groups or more")
    return made


def references(prompt: Prompt, corrupt: Sequence[Prompt], most: int) -> tuple[Prompt, ...]:
    """Return the prompt's own corrupt one, then others of its group that have its length and spans, up to `most`."""
    fitting = [
        other
        for other in corrupt
        if other.pair_id == prompt.pair_id
        or (other.group == prompt.group and len(other) == len(prompt) and other.spans == prompt.spans)
    ]
    fitting.sort(key=lambda other: other.pair_id != prompt.pair_id)
    return tuple(fitting[:most])


def sources(prompt: Prompt) -> dict[str, tuple[int, ...]]:
    """Return the positions of each part: `sink` (the first token), the spans without their numbers, `other`."""
    row = len(prompt) - len(prompt.answer_ids) - 1
    part: np.ndarray = np.full(row + 1, "other", object)
    for name, (start, stop) in prompt.spans.items():
        if name != "answer":
            part[start:stop] = re.sub(r"\d+", "", name)
    part[0] = "sink"
    names = ["sink", *sorted({str(name) for name in part} - {"sink", "other"}), "other"]
    return {name: tuple(np.flatnonzero(part == name).tolist()) for name in names}
