"""Greater-than (Hanna et al. 2023, arXiv 2305.00586), for tokenizers that write digits one token each.

A war that began in 1742 ended in a year 17__ whose next digit is 4 or more. The paper's task compares two-digit tokens;
here the tens digit is compared with the next digit's distribution: another task, whose numbers are not the paper's.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparselens.workbench.encoder import token_span
from sparselens.workbench.prompt_set import PromptSet
from sparselens.workbench.prose import exact_fill

if TYPE_CHECKING:
    from sparselens.workbench.encoder import Encoder
    from sparselens.workbench.prompt import Prompt

_NOUNS = (
    *("war", "siege", "voyage", "dynasty", "expedition", "famine", "reign", "truce", "alliance", "campaign"),
    *("rebellion", "drought", "plague", "trial", "journey", "occupation"),
)
_CENTURIES = range(11, 18)
_TENS = range(2, 8)
_UNITS = (1, 0, 2, 3, 4, 5, 6, 7, 8, 9)
"""Of the references, in turn: 01 is the paper's."""


@dataclass(frozen=True)
class GreaterThan(PromptSet):
    """`n` prompts, each followed by `references` corrupt ones of equal length; `pair_id` joins them, group is the noun.

    Corrupt: the tens digit is 0 (01, 00, 02 …), which allows every next digit. `metadata.right` are the tokens of the
    digits above the tens digit, the foils those of the digits below; the tens digit itself is neither. The answer
    (teacher-forced) is the digit one above. `filler` tokens of prose stand between the two sentences. Spans: `century`,
    `tens`, `unit` of the first year, `END`, `answer`.
    """

    name: ClassVar[str] = "greater_than"
    description: ClassVar[str] = "a year that is later than another: clean and corrupt pairs, digit by digit"

    n: int = 8
    filler: int = 0
    references: int = 1
    seed: int = 0

    def prompts(self, encoder: Encoder) -> list[Prompt]:
        """The pairs; ValueError for a tokenizer that does not write each digit as a token of its own."""
        if self.n < 1 or self.filler < 0:
            raise ValueError("greater_than: n is at least 1, filler not negative")
        if not 1 <= self.references <= len(_UNITS):
            raise ValueError(f"greater_than: references is 1 to {len(_UNITS)}")
        centuries = [each for each in _CENTURIES if _apart(encoder, str(each))]
        if not centuries:
            raise ValueError("greater_than: this tokenizer does not write each digit as a token of its own")
        subjects = [(noun, century) for noun in _NOUNS for century in centuries]
        if len(subjects) < self.n:
            raise ValueError(
                f"greater_than: there are {len(subjects)} pairs of noun and century, n is {self.n}"
            )
        chosen = random.Random(str(self.seed)).sample(subjects, self.n)
        return [prompt for number, each in enumerate(chosen) for prompt in self._pair(encoder, number, *each)]

    def _pair(self, encoder: Encoder, number: int, noun: str, century: int) -> list[Prompt]:
        rng = random.Random(f"{self.seed}-{number}")
        tens = _TENS[number % len(_TENS)]
        units = [each for each in _UNITS if _apart(encoder, f"{century}{tens}", each)]
        references = [each for each in _UNITS if _apart(encoder, f"{century}0", each)]
        if not units or len(references) < self.references:
            raise ValueError(
                f"greater_than: this tokenizer writes too few of the years from {century}00 on as digits"
            )
        filler = " " + " ".join(exact_fill(self.filler, encoder.size, rng)) if self.filler else ""
        years = [f"{century}{tens}{rng.choice(units)}"]
        years += [f"{century}0{each}" for each in references[: self.references]]
        return [
            self._one(encoder, number, (noun, year, filler), tens, place) for place, year in enumerate(years)
        ]

    def _one(
        self, encoder: Encoder, number: int, parts: tuple[str, str, str], tens: int, place: int
    ) -> Prompt:
        noun, year, filler = parts
        head = f"The {noun} began in the year {year}."
        text = f"{head}{filler} It ended in the year {year[:2]}"
        ids, offsets = encoder.encode(text)
        start = len(head) - 1 - len(year)
        at = {"century": (start, start + 2), "tens": (start + 2, start + 3), "unit": (start + 3, start + 4)}
        tokens = [encoder.continuation(text, ids, str(digit), raw=True)[0][0] for digit in range(10)]
        role = "clean" if place == 0 else f"corrupt{place - 1 or ''}"
        return encoder.prompt(
            {
                "token_ids": ids,
                "answer": [tokens[tens + 1]],
                "foils": tokens[:tens],
                "spans": {
                    **{name: token_span(offsets, *where) for name, where in at.items()},
                    "END": (len(ids) - 1, len(ids)),
                },
                "group": noun,
                "pair_id": f"greater_than-{self.seed}-{number}",
                "metadata": {"set": str(self), "role": role, "tens": tens, "right": tokens[tens + 1 :]},
            },
            name=f"greater_than-{self.seed}-{number}-{role}",
            prompt_set=self.name,
            bos_mode=encoder.bos_mode,
        )


def _apart(encoder: Encoder, year: str, *digits: int) -> bool:
    """Whether each of the digits (all of them, unless given) is one token after a year's first digits."""
    text = f"It ended in the year {year}"
    ids = encoder.encode(text)[0]
    found = [encoder.continuation(text, ids, str(digit), raw=True) for digit in digits or range(10)]
    return all(joint and len(tokens) == 1 for tokens, joint in found)


PROMPT_SET = GreaterThan
