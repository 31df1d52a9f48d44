"""One run in words: what it lost against its base, what it kept, whether it is verified."""

from __future__ import annotations

import math
from typing import Any

CHECKS = ("verify_kernel", "verify_logits", "verify_calls")


def number(value: float | None, digits: int = 3) -> str:
    """A number as people read it: `–` for none, a true minus sign, small ones in powers of ten."""
    if value is None or math.isnan(value):
        return "–"
    if value != 0 and abs(value) < 10.0**-digits:
        return f"{value:.1e}".replace("e-0", "e-").replace("-", "−", int(value < 0))
    return f"{value:.{digits}f}".replace("-", "−")


def percent(share: float | None) -> str:
    """A share as a percentage with three digits that matter."""
    return "–" if share is None or math.isnan(share) else f"{share:.1%}".replace("%", " %")


def verified(run: dict[str, Any]) -> str:
    """`verified 3/3`, what failed, or `not verified`."""
    results = {name: run.get(name) for name in CHECKS}
    passed = sum(value is True for value in results.values())
    failed = [name.removeprefix("verify_") for name, value in results.items() if value is False]
    missing = [name.removeprefix("verify_") for name, value in results.items() if value is None]
    if len(missing) == len(CHECKS):
        return "not verified"
    words = [f"verified {passed}/{len(CHECKS)}"]
    if failed:
        words.append(f"failed: {', '.join(failed)}")
    if missing:
        words.append(f"not checked: {', '.join(missing)}")
    return "; ".join(words)


def verdict(loss: dict[str, Any], run: dict[str, Any]) -> str:
    """The headline: answer and text loss of base → run in nats a token, density, verification."""
    words = []
    if loss.get("answer_a") is not None:
        words.append(f"answer NLL {number(loss['answer_a'], 2)} → {number(loss['answer_b'], 2)}")
    words.append(f"whole-text NLL {number(loss.get('nll_a'), 2)} → {number(loss.get('nll_b'), 2)}")
    words.append(f"{percent(run.get('density'))} of allowed pairs kept")
    words.append(f"run {verified(run)}")
    if run.get("off_label"):
        words.append("off-label: its paper trained the model with this policy, here it was not")
    if run.get("status") not in (None, "complete"):
        words.append(f"the run is {run['status']}")
    sentence = "; ".join(words)
    return sentence[0].upper() + sentence[1:] + "."
