"""Select-and-copy heads: whether a head's query finds the right option, whatever the model then says.

QK-score (Tulchinskii et al., arXiv 2410.02343): q of the last token times k of an option's end of line, both before
rotary positions; the head chooses the option with the largest. The best head is chosen on some groups and tested on the
others. Attention is scored the same way, with the weights as executed: a dropped key has none.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

PLACES = ("label", "end")
"""An option's letter, and the end of its line."""
SCORES = {"qk": "raw", "attention": "paid"}


def right_choices(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Return whether each head chooses the right option, by score and place: `[layers · heads]` of 0 and 1.

    A head that gives several options the largest score is right as often as a blind choice among them.
    """
    found = {}
    for score, source in SCORES.items():
        for number, place in enumerate(PLACES):
            values = np.asarray(numbers[source], float)[
                number :: len(PLACES)
            ]  # [options, heads], the right one first
            best = values == values.max(0)
            found[f"{score}_accuracy_{place}"] = best[0] / best.sum(0)
    return found


def held_out(groups: Sequence[str], share: float, seed: int) -> Any:
    """Return which prompts the best head is tested on, bool `[prompts]`: all but a share of the groups.

    `ValueError` where there are fewer than two groups.
    """
    names = sorted(set(groups))
    if len(names) < 2:
        raise ValueError(
            "the best head is chosen on some groups and tested on others: give two groups or more"
        )
    random.Random(f"validation {seed}").shuffle(names)
    chosen_on = set(names[: max(1, round(share * len(names)))])
    return np.array([group not in chosen_on for group in groups])
