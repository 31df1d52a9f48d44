"""What `analyse roles` runs: its parameters, and the prompts that follow from them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from sparselens.analyses.role_watch import FAR
from sparselens.kernels.policy import parse as parse_policy
from sparselens.workbench.encoder import Encoder
from sparselens.workbench.prompt import Prompt
from sparselens.workbench.prompt_set import PromptSet
from sparselens.workbench.prompt_sets.prose import Prose
from sparselens.workbench.prompt_sets.repeats import Repeats
from sparselens.workbench.session import Session

BOS = {"default": None, "added": True, "left out": False}


@dataclass(frozen=True)
class Roles:
    """`sequences` repeats of `half` random tokens at each gap, `windows` of prose for sinks, `texts` for distances.

    `bos`: default (the tokenizer's own), added, left out. `epsilon`: the sink threshold of Gu et al.
    """

    policy: str = "dense"
    kernel: str = "blocked"
    gaps: tuple[int, ...] = (0, 10, 25, 50)
    half: int = 50
    sequences: int = 16
    windows: int = 100
    window: int = 64
    epsilon: float = 0.3
    texts: int = 8
    length: int = 256
    bos: str = "default"
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "policy", str(parse_policy(self.policy)))
        object.__setattr__(self, "gaps", tuple(sorted(set(self.gaps))))
        if self.bos not in BOS:
            raise ValueError(f"bos is one of {', '.join(BOS)}, not {self.bos!r}")
        if min(self.sequences, self.windows, self.texts) < 1 or self.gaps[0] < 0 or self.half < 2:
            raise ValueError(
                "roles: sequences, windows and texts are at least 1, half at least 2, gaps at least 0"
            )
        if self.length <= FAR or self.window <= 8:
            raise ValueError(f"roles: length is more than {FAR} tokens, window more than 8")


@dataclass(frozen=True)
class Material:
    """The prompts of one measurement: a set's call, its prompts, the gap between the halves of repeats."""

    call: str
    prompts: list[Prompt]
    gap: int | None = None


@dataclass(frozen=True)
class Plan:
    """All prompts of an analysis, in the order they run."""

    repeats: list[Material]
    windows: Material
    texts: Material

    @property
    def all(self) -> list[Material]:
        """Every measurement."""
        return [*self.repeats, self.windows, self.texts]

    @property
    def tokens(self) -> int:
        """Tokens that the model will read."""
        return sum(len(prompt) for material in self.all for prompt in material.prompts)

    @property
    def ids_hash(self) -> str:
        """Hash of all token ids in order."""
        ids = " ".join(prompt.id for material in self.all for prompt in material.prompts)
        return hashlib.sha256(ids.encode()).hexdigest()[:16]


def planned(session: Session, chosen: Roles) -> Plan:
    """Return the prompts; `ValueError` where the model's context or the tokenizer's words do not suffice."""
    encoder = Encoder(session.tokenizer, bos=BOS[chosen.bos], max_tokens=session.max_tokens)
    plain = 2 * chosen.half + len(encoder.opening())

    def made(which: PromptSet, gap: int | None = None) -> Material:
        prompts = {prompt.id: prompt for prompt in which.prompts(encoder)}
        return Material(str(which), list(prompts.values()), gap)

    return Plan(
        [
            made(Repeats(length=plain + gap, gap=(gap,), n=chosen.sequences, seed=chosen.seed), gap)
            for gap in chosen.gaps
        ],
        made(Prose(length=chosen.window, n=chosen.windows, seed=chosen.seed)),
        made(Prose(length=chosen.length, n=chosen.texts, seed=chosen.seed)),
    )
