"""Facts that a small model may know: a subject, a relation, and an answer that is one token.

`We are talking about France. The capital of that country is the city of` is continued by ` Paris`. The subject stands
in a sentence before the question, so that `filler` can move it out of a window. Nothing in the prompt holds the answer:
it has to come out of the weights, by way of the subject (Geva et al. 2023, arXiv 2304.14767).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from sparselens.workbench.encoder import token_span
from sparselens.workbench.fact_relation import RELATIONS, Relation
from sparselens.workbench.prompt_set import PromptSet
from sparselens.workbench.prose import exact_fill

if TYPE_CHECKING:
    from sparselens.workbench.encoder import Encoder
    from sparselens.workbench.prompt import Prompt

_FEWEST = 4


@dataclass(frozen=True)
class Facts(PromptSet):
    """`n` pairs of prompts a relation (0: one for every subject), clean and corrupt, of equal length.

    The corrupt prompt names another subject of as many tokens, with another answer; answer (teacher-forced) and foil
    of both are those of the clean one, and `pair_id` joins them. Group is the relation, subjects of clean prompts
    differ. `filler` tokens of prose stand between subject and question. Spans: `subject`, `relation` (the question
    without its last token), `END` (that token: the row that predicts the answer), `answer`.
    """

    name: ClassVar[str] = "facts"
    description: ClassVar[str] = "subject, relation, answer: facts that have to come out of the weights"

    relations: tuple[str, ...] = tuple(RELATIONS)
    n: int = 12
    filler: int = 0
    seed: int = 0

    def prompts(self, encoder: Encoder) -> list[Prompt]:
        """Relation after relation; ValueError where a relation has fewer than four one-token answers."""
        for relation in self.relations:
            if relation not in RELATIONS:
                raise ValueError(f"facts has no relation {relation!r}; it has {', '.join(RELATIONS)}")
        if self.n < 0 or self.filler < 0:
            raise ValueError("facts: n and filler are not negative")
        return [
            prompt
            for relation in dict.fromkeys(self.relations)
            for prompt in self._of(encoder, RELATIONS[relation])
        ]

    def _of(self, encoder: Encoder, relation: Relation) -> list[Prompt]:
        """The pairs of one relation; a subject without a partner of its length is left out."""
        rng = random.Random(f"{self.seed}-{relation.name}")
        facts = [fact for fact in relation.facts if len(encoder.plain(" " + fact[1])) == 1]
        if len(facts) < _FEWEST:
            raise ValueError(
                f"facts: {len(facts)} answers of {relation.name} are one token in this tokenizer, {_FEWEST} are needed"
            )
        rng.shuffle(facts)
        taken: set[tuple[str, str]] = set()
        made: list[Prompt] = []
        for subject, answer in facts:
            if self.n and len(made) == 2 * self.n:
                break
            partners = [
                other
                for other in facts
                if other[1] != answer
                and (other[0], answer) not in taken
                and encoder.size(other[0]) == encoder.size(subject)
            ]
            if partners:
                partner = rng.choice(partners)
                taken.add((partner[0], answer))
                made += self._pair(encoder, relation, (subject, answer), partner, rng)
        return made

    def _pair(
        self,
        encoder: Encoder,
        relation: Relation,
        fact: tuple[str, str],
        partner: tuple[str, str],
        rng: random.Random,
    ) -> list[Prompt]:
        """A clean prompt and its corrupt one; ValueError where their lengths differ all the same."""
        filler = " " + " ".join(exact_fill(self.filler, encoder.size, rng)) if self.filler else ""
        label = {"group": relation.name, "pair_id": f"facts-{relation.name}-{self.seed}-{fact[0]}"}
        answers = (fact[1], partner[1])
        clean, corrupt = (
            self._one(encoder, relation, subject, filler, answers, label | {"role": role})
            for subject, role in ((fact[0], "clean"), (partner[0], "corrupt"))
        )
        if len(clean) != len(corrupt):
            raise ValueError(
                f"facts: {fact[0]} and {partner[0]} make {len(clean)} and {len(corrupt)} tokens in this tokenizer"
            )
        return [clean, corrupt]

    def _one(
        self,
        encoder: Encoder,
        relation: Relation,
        subject: str,
        filler: str,
        answers: tuple[str, str],
        label: dict[str, Any],
    ) -> Prompt:
        head = relation.head.format(subject=subject)
        text = head + filler + relation.tail
        ids, offsets = encoder.encode(text)
        at = relation.head.index("{subject}")
        first = token_span(offsets, len(head) + len(filler) + 1, len(text))[0]
        right, wrong = (encoder.plain(" " + answer) for answer in answers)
        spans = {
            "subject": token_span(offsets, at, at + len(subject)),
            "relation": (first, len(ids) - 1),
            "END": (len(ids) - 1, len(ids)),
        }
        return encoder.prompt(
            {
                "token_ids": ids,
                "answer": right,
                "foils": wrong,
                "spans": spans,
                "group": label["group"],
                "pair_id": label["pair_id"],
                "metadata": {"set": str(self), "role": label["role"], "subject": subject},
            },
            name=f"{label['pair_id']}-{label['role']}",
            prompt_set=self.name,
            bos_mode=encoder.bos_mode,
        )


PROMPT_SET = Facts
