"""Labels of heads by stated rules on their scores. They are printed, never stored: scores are the finding."""

from __future__ import annotations

from collections.abc import Mapping

THRESHOLD = 0.4
"""What counts as a strong head: a common convention, of no paper in particular."""
RETRIEVAL = 0.1
"""Wu et al. (arXiv 2404.15574) call a head with more than this a retrieval head, with more than 0.5 a strong one."""
DORMANT = 0.8
"""Mean attention to the first token from which a head is called dormant on a kind of text (a rule of ours)."""
APART = 0.3
"""Difference of that attention between two kinds of text from which a head is called active–dormant (ours too)."""


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
    if scores.get("retrieval", 0.0) > RETRIEVAL:
        found.append("retrieval head" + (" (strong)" if scores["retrieval"] > 0.5 else ""))
    return found + _asleep(scores)


def _asleep(scores: Mapping[str, float]) -> list[str]:
    """Return whether the head rests on the first token, on prose and on code."""
    prose, code = scores.get("sink_mass"), scores.get("sink_mass_code")
    if prose is None or code is None:
        return []
    if min(prose, code) > DORMANT:
        return ["dormant head"]
    if abs(prose - code) > APART:
        return [f"active–dormant head (dormant on {'prose' if prose > code else 'code'})"]
    return []


def rules(threshold: float) -> list[str]:
    """Return the rules in words."""
    return [
        f"labels: previous-token heads score {threshold:g} or more; induction and duplicate-token heads do so at every"
        f" gap; one that does so at one gap and has less than {threshold / 4:g} at the others is a fixed-offset head",
        f"retrieval heads score more than {RETRIEVAL:g} (Wu et al.), strong ones more than 0.5; dormant heads give the"
        f" first token more than {DORMANT:g} on prose and on code, active–dormant ones differ by more than {APART:g}",
    ]
