"""Repeated random tokens: a random sequence, then the same again. What induction heads are found with."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparselens.workbench.prompt_set import PromptSet

if TYPE_CHECKING:
    from sparselens.workbench.encoder import Encoder
    from sparselens.workbench.prompt import Prompt


@dataclass(frozen=True)
class Repeats(PromptSet):
    """`n` prompts of exactly `length` tokens: opening, r, filler, r; all tokens of one prompt differ but r.

    `gap` is the filler's size in tokens (one more where `length - gap` is odd); drawn tokens are words and
    word pieces, never special or byte tokens. Spans: `first` and `second`.
    """

    name: ClassVar[str] = "repeats"
    description: ClassVar[str] = "random tokens, then the same again after a gap: induction without meaning"

    length: int = 256
    gap: tuple[int, ...] = (0,)
    n: int = 4
    seed: int = 0

    def prompts(self, encoder: Encoder) -> list[Prompt]:
        """Prompt i has the i-th gap, in turn."""
        if self.n < 1:
            raise ValueError("repeats: n is at least 1")
        words = encoder.texts.words()
        opening = encoder.opening()
        made = []
        for number in range(self.n):
            gap = self.gap[number % len(self.gap)]
            size = (self.length - len(opening) - gap) // 2
            if size < 2 or gap < 0:
                raise ValueError(f"repeats: no room for two halves in length {self.length} with gap {gap}")
            filler = self.length - len(opening) - 2 * size
            if size + filler > len(words):
                raise ValueError(
                    f"repeats: this tokenizer has {len(words)} words, {size + filler} are needed"
                )
            drawn = random.Random(f"{self.seed}-{number}").sample(words, size + filler)
            half = drawn[:size]
            start, again = len(opening), len(opening) + size + filler
            made.append(
                encoder.prompt(
                    {
                        "token_ids": [*opening, *half, *drawn[size:], *half],
                        "spans": {"first": (start, start + size), "second": (again, again + size)},
                        "group": f"gap{filler}",
                        "metadata": {"set": str(self), "gap": filler, "period": size + filler},
                    },
                    name=f"repeats-{self.length}-{self.seed}-{number}",
                    prompt_set=self.name,
                    bos_mode=encoder.bos_mode,
                )
            )
        return made


PROMPT_SET = Repeats
