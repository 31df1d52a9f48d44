"""Copying: random words, and later a few of them again; the word that followed them comes next.

Induction (Olsson et al. 2022, arXiv 2209.11895) as a task with pairs: in the corrupt prompts the words at the end did
not occur before.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparselens.workbench.prompt_set import PromptSet
from sparselens.workbench.prose import exact_fill

if TYPE_CHECKING:
    from sparselens.workbench.encoder import Encoder
    from sparselens.workbench.prompt import Prompt


@dataclass(frozen=True)
class Copying(PromptSet):
    """`n` prompts, each followed by `references` corrupt ones of equal length; `pair_id` joins them.

    A prompt is the opening, `words` random word tokens, `filler` tokens of prose, and `again` of the words in their
    order; the answer (teacher-forced) is the word after these, the foils are the other words. In a corrupt prompt other
    words stand first, and the end is that of the clean one. No word occurs twice, nor in the prose. Spans: `A` and
    `B`, the last of the repeated words and the one after it, where they first stand; `END`, where A stands again;
    `answer`.
    """

    name: ClassVar[str] = "copying"
    description: ClassVar[str] = "random words of which some come again: clean and corrupt pairs"

    n: int = 8
    words: int = 12
    again: int = 3
    filler: int = 0
    references: int = 1
    seed: int = 0

    def prompts(self, encoder: Encoder) -> list[Prompt]:
        """The pairs; ValueError for a tokenizer with too few words."""
        if self.n < 1 or self.filler < 0 or self.references < 1:
            raise ValueError("copying: n and references are at least 1, filler not negative")
        if not 1 <= self.again < self.words:
            raise ValueError("copying: again is at least 1 and less than words")
        known = encoder.texts.words()
        return [prompt for number in range(self.n) for prompt in self._pair(encoder, number, known)]

    def _pair(self, encoder: Encoder, number: int, known: Sequence[int]) -> list[Prompt]:
        rng = random.Random(f"{self.seed}-{number}")
        filler: list[int] = []
        if self.filler:
            filler = encoder.plain(" " + " ".join(exact_fill(self.filler, encoder.size, rng)))
        inside, needed = set(filler), self.words * (1 + self.references)
        left = [token for token in known if token not in inside]
        if len(left) < needed:
            raise ValueError(f"copying: this tokenizer has {len(left)} words, {needed} are needed")
        drawn = rng.sample(left, needed)
        at = rng.randrange(self.again - 1, self.words - 1)
        lists = [drawn[start : start + self.words] for start in range(0, needed, self.words)]
        clean = lists[0]
        more = [*filler, *clean[at + 1 - self.again : at + 1]]
        return [
            self._one(encoder, number, place, words, more, clean, at) for place, words in enumerate(lists)
        ]

    def _one(
        self,
        encoder: Encoder,
        number: int,
        place: int,
        words: list[int],
        more: list[int],
        clean: list[int],
        at: int,
    ) -> Prompt:
        opening = encoder.opening()
        ids = [*opening, *words, *more]
        first = len(opening) + at
        role = "clean" if place == 0 else f"corrupt{place - 1 or ''}"
        return encoder.prompt(
            {
                "token_ids": ids,
                "answer": [clean[at + 1]],
                "foils": [token for token in clean if token != clean[at + 1]],
                "spans": {
                    "A": (first, first + 1),
                    "B": (first + 1, first + 2),
                    "END": (len(ids) - 1, len(ids)),
                },
                "pair_id": f"copying-{self.seed}-{number}",
                "metadata": {"set": str(self), "role": role},
            },
            name=f"copying-{self.seed}-{number}-{role}",
            prompt_set=self.name,
            bos_mode=encoder.bos_mode,
        )


PROMPT_SET = Copying
