"""Labels of heads by stated rules on their scores. They are printed, never stored: scores are the finding."""

from __future__ import annotations

from collections.abc import Mapping

THRESHOLD = 0.4
"""What counts as a strong head: a common convention, of no paper in particular."""


def labels(scores: Mapping[str, float], threshold: float = THRESHOLD) -> list[str]:
    """Return the labels of a head with these scores (metrics of `analyse roles`).

    An induction or duplicate-token head keeps its score at every gap. A head that has it at some gap and less than
    half of it at another looks back by a fixed offset, and is refused the name.
    """
    found = []
    if scores.get("previous_token", 0.0) >= threshold:
        found.append("previous-token head")
    for metric, name in (("induction", "induction head"), ("duplicate_token", "duplicate-token head")):
        by_gap = [value for key, value in scores.items() if key.startswith(f"{metric}_gap")]
        if not by_gap:
            continue
        if min(by_gap) >= threshold:
            found.append(name if len(by_gap) > 1 else f"{name}? (one gap)")
        elif max(by_gap) >= threshold and min(by_gap) < threshold / 2:
            found.append(f"fixed-offset head, not {name.replace(' head', '')}")
    return found
