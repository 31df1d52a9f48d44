"""A needle in a haystack: one sentence hidden in prose, asked for at the end, answered by copying.

Unlike most needle tests the answer is teacher-forced: it stands at the end of the prompt, so one forward pass
gives its loss and tells whether greedy decoding would have written it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar

from sparselens.workbench.encoder import token_span
from sparselens.workbench.needle_family import FAMILIES, Needle
from sparselens.workbench.prompt_set import PromptSet
from sparselens.workbench.prose import exact_fill

if TYPE_CHECKING:
    from sparselens.workbench.encoder import Encoder
    from sparselens.workbench.prompt import Prompt

_INTRODUCTION = "Read the following text and answer the question at the end.\n\n"
_MARK = "SPARSELENSCONTENT"
_ATTEMPTS = 20


@dataclass(frozen=True)
class Needles(PromptSet):
    """Prompts of exactly `length` tokens, answer included; the needle stands at the sentence nearest `depth`.

    Families, depths and lengths are taken in turn until there are `n` (0: every combination once); group is
    the family. Spans: `needle`, `question`, `answer`. `chat` False leaves the model's chat template out.
    """

    name: ClassVar[str] = "needles"
    description: ClassVar[str] = "a sentence hidden in prose at several depths, asked for at the end"

    length: tuple[int, ...] = (512,)
    depths: tuple[float, ...] = (0.1, 0.5, 0.9)
    families: tuple[str, ...] = tuple(FAMILIES)
    n: int = 0
    chat: bool = True
    seed: int = 0

    def prompts(self, encoder: Encoder) -> list[Prompt]:
        """The grid, in turn; ValueError for an unknown family and for a length without room for prose."""
        for family in self.families:
            if family not in FAMILIES:
                raise ValueError(f"needles has no family {family!r}; it has {', '.join(FAMILIES)}")
        if self.n < 0 or any(not 0 <= depth <= 1 for depth in self.depths):
            raise ValueError("needles: depths go from 0 to 1, n is not negative")
        n_families, n_depths, n_lengths = len(self.families), len(self.depths), len(self.length)
        made = []
        for number in range(self.n or n_families * n_depths * n_lengths):
            turn = number // n_families
            made.append(
                self._one(
                    encoder,
                    number,
                    self.families[number % n_families],
                    self.depths[(number % n_families + turn) % n_depths],
                    self.length[(turn // n_depths) % n_lengths],
                )
            )
        return made

    def _one(self, encoder: Encoder, number: int, family: str, depth: float, length: int) -> Prompt:
        rng = random.Random(f"{self.seed}-{number}")
        needle = FAMILIES[family].draw(rng)
        before, after, chat = self._frame(encoder)
        count = encoder.size
        room = length - count(
            before + after + needle.sentence + needle.question + needle.opening + needle.answer
        )
        for _ in range(_ATTEMPTS):
            if room <= 0:
                raise ValueError(
                    f"needles: length {length} has no room for prose; {length - room + 50} would do"
                )
            try:
                sentences = exact_fill(room, count, rng)
            except ValueError as problem:
                raise ValueError(
                    f"needles: length {length} leaves {room} tokens for prose, and {problem}; "
                    f"{length - room + 50} would do"
                ) from problem
            fields = _fields(
                encoder, needle, _insert(sentences, needle.sentence, depth, count), before, after, chat
            )
            missing = length - len(fields["token_ids"]) - len(fields["answer"])
            if missing == 0:
                break
            room += missing
        else:
            raise ValueError(f"needles: no prompt of exactly {length} tokens was found; try a longer one")
        fields["metadata"] |= {"set": str(self), "family": family, "depth": depth, "length": length}
        return encoder.prompt(
            {**fields, "group": family},
            name=f"needles-{family}-{length}-{depth:g}-{self.seed}-{number}",
            prompt_set=self.name,
            bos_mode="template" if chat else encoder.bos_mode,
            template=encoder.template if chat else None,
        )

    def _frame(self, encoder: Encoder) -> tuple[str, str, bool]:
        """What stands before the prose and after the question: the chat template's words, else plain ones."""
        if not self.chat or encoder.template is None:
            return _INTRODUCTION, "\nAnswer: ", False
        text = encoder.render([{"role": "user", "content": _MARK}])
        before, _, after = text.partition(_MARK)
        return before + _INTRODUCTION, after, True


def _insert(sentences: list[str], needle: str, depth: float, count: Any) -> list[str]:
    """The sentences with the needle at the boundary nearest `depth` of their tokens."""
    ends = [0, *accumulate(count(sentence) for sentence in sentences)]
    at = min(range(len(ends)), key=lambda place: abs(ends[place] - depth * ends[-1]))
    return [*sentences[:at], needle, *sentences[at:]]


def _fields(
    encoder: Encoder, needle: Needle, sentences: list[str], before: str, after: str, chat: bool
) -> dict[str, Any]:
    """Ids, answer and token spans of the assembled text, tokenised in one go."""
    body = before + " ".join(sentences)
    asked = f"{body}\n\nQuestion: {needle.question}"
    text = asked + after + needle.opening
    ids, offsets = encoder.rendered(text) if chat else encoder.encode(text)
    start = text.index(needle.sentence, len(before))
    value = needle.answer.strip()
    within = start + needle.sentence.index(value)
    return {
        "token_ids": ids,
        "answer": encoder.continuation(text, ids, needle.answer, raw=not chat)[0],
        "spans": {
            "needle": token_span(offsets, start, start + len(needle.sentence)),
            "question": token_span(offsets, len(asked) - len(needle.question), len(asked)),
        },
        "metadata": {"value": list(token_span(offsets, within, within + len(value)))},
    }


PROMPT_SET = Needles
