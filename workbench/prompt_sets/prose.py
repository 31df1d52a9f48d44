"""Plain prose: paragraphs of Python's manual, cut to an exact number of tokens. No answer, no spans."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparselens.workbench.prompt_set import PromptSet
from sparselens.workbench.prose import paragraphs

if TYPE_CHECKING:
    from sparselens.workbench.encoder import Encoder
    from sparselens.workbench.prompt import Prompt


@dataclass(frozen=True)
class Prose(PromptSet):
    """`n` stretches of `length` tokens, special tokens at the start included."""

    name: ClassVar[str] = "prose"
    description: ClassVar[str] = "plain prose (Python's own manual), no answer: for losses over a whole text"

    length: int = 512
    n: int = 4
    seed: int = 0

    def prompts(self, encoder: Encoder) -> list[Prompt]:
        """Each starts at another paragraph, evenly spread over the text."""
        if self.n < 1:
            raise ValueError("prose: n is at least 1")
        blocks = [" ".join(block) for block in paragraphs()]
        first = random.Random(self.seed).randrange(len(blocks))
        made = []
        for number in range(self.n):
            start = (first + number * len(blocks) // self.n) % len(blocks)
            order = [*blocks[start:], *blocks[:start]]
            ids = encoder.encode("\n\n".join(order[: max(20, self.length)]))[0]
            if len(ids) < self.length:
                raise ValueError(f"prose: there are {len(ids)} tokens of it, length is {self.length}")
            made.append(
                encoder.prompt(
                    {"token_ids": ids[: self.length], "metadata": {"set": str(self), "paragraph": start}},
                    name=f"prose-{self.length}-{self.seed}-{number}",
                    prompt_set=self.name,
                    bos_mode=encoder.bos_mode,
                )
            )
        return made


PROMPT_SET = Prose
