"""Indirect object identification (Wang et al. 2022, arXiv 2211.00593).

Who gets the thing? `Then, Mary and John went to the store. John gave a drink to` is continued by the name
that occurs once.
The paper's templates put both clauses in one sentence; ours use two, so that prose can stand between them:
an IOI sentence is shorter than every window, and a sparse policy drops nothing of it without `filler`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from sparselens.workbench.encoder import token_span
from sparselens.workbench.prompt_set import PromptSet
from sparselens.workbench.prose import exact_fill

if TYPE_CHECKING:
    from sparselens.workbench.encoder import Encoder
    from sparselens.workbench.prompt import Prompt

_NAMES = (
    "Mary John Tom James Dan Martin Amy Paul David Sarah Mark Alice Kate Anna "
    "Emma Peter Laura Steven Robert Lisa Michael Susan Daniel Julia George Henry Jack Sam "
    "Jane Ben Alex Maria Simon Thomas Lucy Frank Adam Rachel Matthew Emily Charles William "
    "Edward Rose Ruth Grace Andrew Eric Kevin Brian Jason Scott Richard Joseph"
)
_PLACES = ("store", "garden", "restaurant", "school", "hospital", "office", "house", "station")
_OBJECTS = ("ring", "kiss", "bone", "basketball", "computer", "necklace", "drink", "snack")
_TEMPLATES = (
    ("Then, {first} and {second} went to the {place}.", " {subject} gave a {object} to"),
    ("Then, {first} and {second} had a lot of fun at the {place}.", " {subject} gave a {object} to"),
    ("Then, {first} and {second} were working at the {place}.", " {subject} decided to give a {object} to"),
    (
        "Then, {first} and {second} were thinking about going to the {place}.",
        " {subject} wanted to give a {object} to",
    ),
    ("Then, {first} and {second} had a long argument.", " Afterwards {subject} said to"),
    ("After that, {first} and {second} found a {object} at the {place}.", " {subject} gave it to"),
    ("One day, {first} and {second} met at the {place}.", " {subject} handed a {object} to"),
    ("Last week, {first} and {second} got lost near the {place}.", " {subject} then gave the {object} to"),
)
_CORRUPTIONS = ("abc", "swap")


@dataclass(frozen=True)
class Ioi(PromptSet):
    """`n` pairs of prompts, clean and corrupt, of equal length; `pair_id` joins them, group is the template.

    Half the pairs name the subject first (BABA), half the other (ABBA). Corrupt is `abc` (three unrelated
    names) or `swap` (the second clause names the other person). Answer (teacher-forced) and foil of both are
    those of the clean prompt. `filler` tokens of prose stand between the clauses. Spans: `IO`, `S1`, `S2`,
    `END` (the row that predicts the answer), `answer`; in an `abc` prompt they mark the same places.
    `references`: so many `abc` prompts follow each clean one, of other names each, all else the same.
    """

    name: ClassVar[str] = "ioi"
    description: ClassVar[str] = "indirect object identification: clean and corrupt pairs of sentences"

    n: int = 8
    corrupt: str = "abc"
    filler: int = 0
    references: int = 1
    seed: int = 0

    def prompts(self, encoder: Encoder) -> list[Prompt]:
        """Only names that are one token in this tokenizer are used; ValueError when fewer than five are."""
        if self.corrupt not in _CORRUPTIONS:
            raise ValueError(f"ioi has no corruption {self.corrupt!r}; it has {', '.join(_CORRUPTIONS)}")
        if self.n < 1 or self.filler < 0:
            raise ValueError("ioi: n is at least 1, filler not negative")
        if self.references < 1 or (self.references > 1 and self.corrupt != "abc"):
            raise ValueError("ioi: references is at least 1, and more than 1 with corrupt=abc alone")
        names = [name for name in _NAMES.split() if len(encoder.plain(" " + name)) == 1]
        if len(names) < 5 + 3 * (self.references - 1):
            raise ValueError(
                f"ioi: only {len(names)} of its names are one token in this tokenizer: too few for"
                f" {self.references} references a pair"
            )
        return [prompt for number in range(self.n) for prompt in self._pair(encoder, number, names)]

    def _pair(self, encoder: Encoder, number: int, names: list[str]) -> list[Prompt]:
        rng = random.Random(f"{self.seed}-{number}")
        template = number // 2 % len(_TEMPLATES)
        giver, getter, *others = rng.sample(names, 5)
        order = "BABA" if number % 2 == 0 else "ABBA"
        pair = (giver, getter) if order == "BABA" else (getter, giver)
        thing = {"place": rng.choice(_PLACES), "object": rng.choice(_OBJECTS)}
        filler = ""
        if self.filler:
            sentences = exact_fill(self.filler, encoder.size, rng)
            filler = " " + " ".join(sentences)
        made = partial(
            self._one, encoder, _TEMPLATES[template], thing=thing, filler=filler, answer=(getter, giver)
        )
        swapped = (pair[0], pair[1], getter) if self.corrupt == "swap" else (others[0], others[1], others[2])
        label = {"group": f"template{template}", "pair_id": f"ioi-{self.seed}-{number}"}
        about = {"set": str(self), "order": order}
        clean = made(
            people=(pair[0], pair[1], giver), label={**label, "metadata": {**about, "role": "clean"}}
        )
        references = [swapped, *self._others(number, names, {giver, getter, *others})]
        corrupt = [
            made(people=people, label={**label, "metadata": {**about, "role": f"corrupt{place or ''}"}})
            for place, people in enumerate(references)
        ]
        for other in corrupt:
            if len(clean) != len(other):
                raise ValueError(
                    f"ioi: pair {number} has {len(clean)} and {len(other)} tokens in this tokenizer"
                )
        return [clean, *corrupt]

    def _others(self, number: int, names: list[str], used: set[str]) -> list[tuple[str, str, str]]:
        """The names of the references after the first, none of them twice."""
        rng = random.Random(f"{self.seed}-{number}-references")
        left = [name for name in names if name not in used]
        drawn = rng.sample(left, 3 * (self.references - 1))
        return [(drawn[at], drawn[at + 1], drawn[at + 2]) for at in range(0, len(drawn), 3)]

    def _one(
        self,
        encoder: Encoder,
        template: tuple[str, str],
        *,
        thing: dict[str, str],
        filler: str,
        answer: tuple[str, str],
        people: tuple[str, str, str],
        label: dict[str, Any],
    ) -> Prompt:
        first, second, subject = people
        head = template[0].format(first=first, second=second, **thing)
        tail = template[1].format(subject=subject, **thing)
        text = head + filler + tail
        ids, offsets = encoder.encode(text)
        subject_at = len(head) + len(filler) + tail.index(subject)
        first_at = head.index(first)
        second_at = head.index(second, first_at + len(first))
        getter_first = label["metadata"]["order"] == "ABBA"
        places = {"IO": second_at, "S1": first_at} if not getter_first else {"IO": first_at, "S1": second_at}
        spans = {name: token_span(offsets, at, at + 1) for name, at in {**places, "S2": subject_at}.items()}
        spans["END"] = (len(ids) - 1, len(ids))
        tokens = [encoder.plain(" " + name) for name in answer]
        return encoder.prompt(
            {**label, "token_ids": ids, "answer": tokens[0], "foils": tokens[1], "spans": spans},
            name=f"{label['pair_id']}-{label['metadata']['role']}",
            prompt_set=self.name,
            bos_mode=encoder.bos_mode,
        )


PROMPT_SET = Ioi
