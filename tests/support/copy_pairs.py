"""Clean and corrupt pairs for the model that answers by reading (`copy_model`): one word is found, one is said."""

from __future__ import annotations

from typing import Any

from copy_model import FILLER, FIRST_WORD, START

from sparselens.workbench.prompt import Prompt

LENGTH, PLACE = 30, 5


def copy_pair(number: int, *, found: bool = True, other: bool = True) -> tuple[Prompt, Prompt]:
    """Return a pair: word w ends the prompt and w + 1 stands at `PLACE`, in the corrupt prompt v and v + 1.

    `found` False: w + 1 stands nowhere. `other` False: v + 1 stands nowhere in the corrupt prompt. Groups are two.
    """
    word, wrong = number % 8, 10 + number % 8
    answer, foil = FIRST_WORD + word + 1, FIRST_WORD + wrong + 1
    made = []
    for role, here, there in (("clean", word, found), ("corrupt", wrong, other)):
        ids = [START, *range(FILLER, FILLER + LENGTH - 2), FIRST_WORD + here]
        if there:
            ids[PLACE] = FIRST_WORD + here + 1
        made.append(_prompt(f"{role}-{number}", ids, answer, foil, {"role": role}, number))
    return made[0], made[1]


def _prompt(
    name: str, ids: list[int], answer: int, foil: int, metadata: dict[str, Any], number: int
) -> Prompt:
    tokens = (*ids, answer)
    return Prompt(
        id=name,
        name=name,
        token_ids=tokens,
        spans={"subject": (PLACE, PLACE + 1), "END": (LENGTH - 1, LENGTH), "answer": (LENGTH, LENGTH + 1)},
        prompt_set="copies",
        group=f"group {number % 2}",
        pair_id=f"pair-{number}",
        answer_ids=(answer,),
        foils=(foil,),
        bos_mode="given",
        template=None,
        metadata=metadata,
        pieces=tuple(f"<{token}>" for token in tokens),
        special=(False,) * len(tokens),
    )
