"""Labels of heads by stated rules on their scores. They are printed, never stored: scores are the finding."""

from __future__ import annotations

from collections.abc import Mapping

THRESHOLD = 0.4
"""What counts as a strong head: a common convention, of no paper in particular."""


def labels(scores: Mapping[str, float], threshold: float = THRESHOLD) -> list[str]:
    """Return the labels of a head with these scores (metrics of `analyse roles`).

    An induction or duplicate-token head keeps its score at every gap; others are refused the name. One that has it at
    one gap and less than a quarter of the threshold at all others looks back by a fixed offset. Where the policy drops
    some of its targets, nothing is said about a head that a longer reach might have shown.
    """
    found = []
    if scores.get("previous_token", 0.0) >= threshold:
        found.append("previous-token head")
    for metric, name in (("induction", "induction"), ("duplicate_token", "duplicate-token")):
        by_gap = sorted(value for key, value in scores.items() if key.startswith(f"{metric}_gap"))
        if not by_gap or by_gap[-1] < threshold:
            continue
        if by_gap[0] >= threshold:
            found.append(f"{name} head" if len(by_gap) > 1 else f"{name} head? (one gap)")
        elif scores.get(f"{metric}_reachable", 1.0) < 1:
            found.append(f"not judged for {name}: the policy drops targets")
        elif by_gap[-2] < threshold / 4:
            found.append(f"fixed-offset head, not {name}")
        else:
            found.append(f"depends on the gap, not {name}")
    return found
