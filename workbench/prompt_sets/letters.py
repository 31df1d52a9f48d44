"""Multiple choice by construction: the letter of that option which is the word that the question names.

Nothing has to be known: the right option is the one that is written out again (the synthetic task of Tulchinskii et
al., arXiv 2410.02343). What is asked for is its letter.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from math import factorial
from typing import TYPE_CHECKING, ClassVar

from sparselens.workbench.encoder import token_span
from sparselens.workbench.prompt_set import PromptSet
from sparselens.workbench.prose import exact_fill

if TYPE_CHECKING:
    from sparselens.workbench.encoder import Encoder
    from sparselens.workbench.prompt import Prompt

_WORDS = (
    "tiger apple river table window doctor yellow winter piano garden bread horse silver mountain bridge pencil lemon"
    " camera rocket island feather candle basket hammer mirror ladder pillow blanket butter cheese dragon engine forest"
    " guitar helmet jacket kitchen magnet needle orange pepper rabbit salmon tunnel umbrella violin wallet zebra"
)
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LAYOUTS = ("before", "after")
_OPENING = "Options:\n"  # the first token is a sink: no option shall stand there


@dataclass(frozen=True)
class Letters(PromptSet):
    """`n` questions of `options` words, each in `permutations` orders; clean and corrupt pairs of equal length.

    `layout` `before`: `A. tiger`, and the question asks for the option; `after`: `tiger: A`, and the prompt ends with
    `tiger:`, which the letter after the same word's earlier place continues. The corrupt prompt asks for another of the
    words; answer (` B`, teacher-forced) and foils (all other letters) of both are those of the clean one, `pair_id`
    joins them, group is the question. `filler` tokens of prose stand between options and question. Spans: `right` the
    right option's letter, `right_text` its word, `right_end` the end of its line; `wrong1`, `wrong1_text`, … those of
    the others in order; `question` the word that is asked for; `END`; `answer`. In a corrupt prompt they mark the same
    places.
    """

    name: ClassVar[str] = "letters"
    description: ClassVar[str] = "multiple choice by construction: the letter of the word that is asked for"

    n: int = 24
    options: int = 4
    permutations: int = 2
    layout: str = "before"
    filler: int = 0
    seed: int = 0

    def prompts(self, encoder: Encoder) -> list[Prompt]:
        """Only words and letters that are one token in this tokenizer; ValueError when there are too few."""
        if self.layout not in _LAYOUTS:
            raise ValueError(f"letters has no layout {self.layout!r}; it has {', '.join(_LAYOUTS)}")
        if self.n < 1 or self.filler < 0 or not 2 <= self.options <= len(_LETTERS):
            raise ValueError("letters: n is at least 1, filler not negative, options are 2 to 26")
        if not 1 <= self.permutations <= factorial(self.options):
            raise ValueError(
                f"letters: {self.options} options have {factorial(self.options)} orders, not {self.permutations}"
            )
        letters = [letter for letter in _LETTERS[: self.options] if len(encoder.plain(" " + letter)) == 1]
        words = [word for word in _WORDS.split() if encoder.size(word) == len(encoder.plain(word)) == 1]
        if len(words) < self.options or len(letters) < self.options:
            raise ValueError(
                f"letters: {len(words)} of its words and {len(letters)} of its letters are one token in this tokenizer;"
                f" {self.options} are needed"
            )
        return [prompt for number in range(self.n) for prompt in self._question(encoder, number, words)]

    def _question(self, encoder: Encoder, number: int, words: list[str]) -> list[Prompt]:
        """All orders of one question, each with its corrupt prompt."""
        rng = random.Random(f"{self.seed}-{number}")
        chosen = rng.sample(words, self.options)
        asked, other = chosen[0], chosen[1]
        orders: dict[tuple[str, ...], None] = {}
        while len(orders) < self.permutations:
            orders[tuple(rng.sample(chosen, self.options))] = None
        filler = " ".join(exact_fill(self.filler, encoder.size, rng)) + "\n" if self.filler else ""
        made = []
        for turn, order in enumerate(orders):
            pair = f"letters-{self.layout}-{self.options}-{self.seed}-{number}-{turn}"
            made += [
                self._one(encoder, order, (asked, word), filler, (f"question{number}", pair, role))
                for word, role in ((asked, "clean"), (other, "corrupt"))
            ]
        return made

    def _one(
        self,
        encoder: Encoder,
        order: tuple[str, ...],
        asked: tuple[str, str],
        filler: str,
        label: tuple[str, str, str],
    ) -> Prompt:
        """One prompt: `asked` is the right word, and the word that is asked for here; `label` group, pair and role."""
        right, named = asked
        group, pair, role = label
        text, places = self._text(order, right, named, filler)
        ids, offsets = encoder.encode(text)
        spans = {name: token_span(offsets, start, stop) for name, (start, stop) in places.items()}
        spans["END"] = (len(ids) - 1, len(ids))
        letters = [encoder.plain(" " + letter) for letter in _LETTERS[: self.options]]
        at = order.index(right)
        return encoder.prompt(
            {
                "token_ids": ids,
                "answer": letters[at],
                "foils": [ids[0] for place, ids in enumerate(letters) if place != at],
                "spans": spans,
                "group": group,
                "pair_id": pair,
                "metadata": {"set": str(self), "role": role, "order": list(order), "asked": named},
            },
            name=f"{pair}-{role}",
            prompt_set=self.name,
            bos_mode=encoder.bos_mode,
        )

    def _text(
        self, order: tuple[str, ...], right: str, named: str, filler: str
    ) -> tuple[str, dict[str, tuple[int, int]]]:
        """The text up to where the letter follows, and the characters of its spans."""
        text, places, wrong = _OPENING, {}, 0
        for letter, word in zip(_LETTERS, order, strict=False):
            wrong += word != right
            name = "right" if word == right else f"wrong{wrong}"
            line, first, second = (
                (f"{letter}. {word}", 0, 3)
                if self.layout == "before"
                else (f"{word}: {letter}", len(word) + 2, 0)
            )
            places[name] = (len(text) + first, len(text) + first + 1)
            places[f"{name}_text"] = (len(text) + second, len(text) + second + len(word))
            places[f"{name}_end"] = (len(text) + len(line), len(text) + len(line) + 1)
            text += line + "\n"
        text += filler
        opening = "Question: Which option is the word " if self.layout == "before" else ""
        closing = "?\nAnswer:" if self.layout == "before" else ":"
        places["question"] = (len(text) + len(opening), len(text) + len(opening) + len(named))
        return text + opening + named + closing, places


PROMPT_SET = Letters
