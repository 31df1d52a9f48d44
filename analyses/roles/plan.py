"""What `analyse roles` runs: its parameters, and the prompts that follow from them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from sparselens.analyses.roles.watch import FAR
from sparselens.kernels.policy import parse as parse_policy
from sparselens.workbench.encoder import BOS, Encoder
from sparselens.workbench.prompt import Prompt
from sparselens.workbench.prompt_set import PromptSet
from sparselens.workbench.prompt_set import parse as set_of
from sparselens.workbench.prompt_sets.needles import Needles
from sparselens.workbench.prompt_sets.prose import Prose
from sparselens.workbench.prompt_sets.repeats import Repeats
from sparselens.workbench.session import Session

PARTS = ("repeats", "windows", "texts", "code", "needles", "states", "importance")


@dataclass(frozen=True)
class Roles:
    """`sequences` repeats of `half` random tokens at each gap, `windows` of prose for sinks, `texts` for distances.

    `needles` runs of `needle_length` tokens for retrieval, answered by `base`; the first `importance` windows for the
    ablation of each head. `bos`: default (the tokenizer's own), added, left out. `epsilon`: the sink threshold of Gu et
    al. `parts`: what is measured, of repeats, windows, texts, code, needles, states, importance.
    """

    policy: str = "dense"
    base: str = "dense"
    kernel: str = "blocked"
    gaps: tuple[int, ...] = (0, 10, 25, 50)
    half: int = 50
    sequences: int = 16
    windows: int = 100
    window: int = 64
    epsilon: float = 0.3
    texts: int = 8
    length: int = 256
    needles: int = 24
    needle_length: int = 384
    importance: int = 8
    bos: str = "default"
    seed: int = 0
    parts: tuple[str, ...] = PARTS

    def __post_init__(self) -> None:
        object.__setattr__(self, "policy", str(parse_policy(self.policy)))
        object.__setattr__(self, "base", str(parse_policy(self.base)))
        object.__setattr__(self, "gaps", tuple(sorted(set(self.gaps))))
        for part in self.parts:
            if part not in PARTS:
                raise ValueError(f"roles has no part {part!r}; it has {', '.join(PARTS)}")
        object.__setattr__(self, "parts", tuple(part for part in PARTS if part in self.parts))
        if self.bos not in BOS:
            raise ValueError(f"bos is one of {', '.join(BOS)}, not {self.bos!r}")
        counts = (self.sequences, self.windows, self.texts, self.needles, self.importance)
        if min(counts) < 1 or self.gaps[0] < 0 or self.half < 2:
            raise ValueError(
                "roles: sequences, windows, texts, needles and importance are at least 1, half at least 2, gaps at"
                " least 0; parts=[…] leaves a measurement out"
            )
        if self.length <= FAR or self.window <= 8:
            raise ValueError(f"roles: length is more than {FAR} tokens, window more than 8")


@dataclass(frozen=True)
class Material:
    """The prompts of one measurement: a set's call, its prompts, the gap between the halves of repeats."""

    call: str
    prompts: list[Prompt]
    gap: int | None = None

    @property
    def tokens(self) -> int:
        """Tokens of its prompts."""
        return sum(len(prompt) for prompt in self.prompts)


NONE = Material("", [])


@dataclass(frozen=True)
class Plan:
    """All prompts of an analysis, in the order they run; empty materials where a part is left out."""

    repeats: list[Material]
    windows: Material = NONE
    texts: Material = NONE
    code: Material = NONE
    needles: Material = NONE

    @property
    def all(self) -> list[Material]:
        """Every set of prompts."""
        every = (*self.repeats, self.windows, self.texts, self.code, self.needles)
        return [material for material in every if material.prompts]

    @property
    def ids_hash(self) -> str:
        """Hash of all token ids in order."""
        ids = " ".join(prompt.id for material in self.all for prompt in material.prompts)
        return hashlib.sha256(ids.encode()).hexdigest()[:16]

    def work(self, chosen: Roles, layers: int, heads: int) -> tuple[int, int]:
        """Return units of work, and the tokens that the model will read for them."""
        units, tokens = 0, 0
        for material in self.all:
            times = 1
            if material is self.windows:
                times = ("windows" in chosen.parts) + ("states" in chosen.parts)
            units += times * len(material.prompts)
            tokens += times * material.tokens
        if "importance" in chosen.parts:
            batch = min(chosen.importance, len(self.windows.prompts)) * chosen.window
            units += layers
            tokens += layers * heads * batch
        return units, tokens


def planned(session: Session, chosen: Roles) -> Plan:
    """Return the prompts; `ValueError` where the model's context or the tokenizer's words do not suffice."""
    encoder = Encoder(session.tokenizer, bos=BOS[chosen.bos], max_tokens=session.max_tokens)
    plain = 2 * chosen.half + len(encoder.opening())

    def made(which: PromptSet, *parts: str, gap: int | None = None) -> Material:
        if not set(parts) & set(chosen.parts):
            return NONE
        prompts = {prompt.id: prompt for prompt in which.prompts(encoder)}
        return Material(str(which), list(prompts.values()), gap)

    gaps = chosen.gaps if "repeats" in chosen.parts else ()
    seed = chosen.seed
    code = f"code(length={chosen.length},n={chosen.texts},seed={seed})"
    return Plan(
        [
            made(Repeats(length=plain + gap, gap=(gap,), n=chosen.sequences, seed=seed), "repeats", gap=gap)
            for gap in gaps
        ],
        made(Prose(length=chosen.window, n=chosen.windows, seed=seed), "windows", "states", "importance"),
        made(Prose(length=chosen.length, n=chosen.texts, seed=seed), "texts"),
        made(set_of(code), "code") if "code" in chosen.parts else NONE,
        made(Needles(length=(chosen.needle_length,), n=chosen.needles, seed=seed), "needles"),
    )
