"""The numbers of the noise floor as rows: what was compared with what, by head and by prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparselens.analyses.fidelity.noise import TOKENS, other_dtype, other_kernel
from sparselens.analyses.fidelity.pair import Pair
from sparselens.analyses.fidelity.plan import Plan
from sparselens.analyses.fidelity.table import Block, head_block

Units = Sequence[tuple[str, Mapping[str, Any]]]
"""Prompt ids and their numbers (`Floor.numbers`)."""

NOISE = {
    "noise_kl": "KL(base ‖ base computed otherwise) of the next-token distributions, nats",
    "noise_nll_change_abs": "|change of −ln probability of the next token|, nats",
    "noise_top1_same": "share of tokens for which both find the same one most probable",
}
"""Per-token metrics of the floor; `_answer`: over the answer's tokens, else over all but the first; then a dtype's name
where that differs and not the kernel."""


def kinds(pair: Pair, dtype: str) -> dict[str, tuple[str, str]]:
    """Return for each kind of floor the suffix of its metrics, and in words what is compared with what."""
    now = dtype.removeprefix("torch.")
    other = other_dtype(now)
    return {
        "kernel": ("", f"kernel {other_kernel(pair.kernel)} against {pair.kernel}, {now}"),
        "dtype": (f"_{other}", f"{other} against {now}, kernel {pair.kernel}"),
    }


def noise_heads(plan: Plan, made: Units, heads: int, dtype: str) -> list[Block]:
    """Return `head_scores` of both kinds, over every set of rows that there is."""
    blocks: list[Block] = []
    for kind, (suffix, words) in kinds(plan.pair, dtype).items():
        start = f"{kind} write_error "
        for key in dict.fromkeys(name for _, unit in made for name in unit if name.startswith(start)):
            taken = [(prompt, unit[key].reshape(-1)) for prompt, unit in made if key in unit]
            ids = [prompt for prompt, _ in taken]
            about = {
                "metric": f"noise_write_error{suffix}",
                "rows": key.removeprefix(start),
                "definition": f"write_error of the base against itself: {words}; mean over prompts",
                "params": json.dumps(
                    plan.pair.params | {"scope": "end_to_end", "noise": words}, sort_keys=True
                ),
                "prompt_set": plan.prompts.sets_of(ids),
            }
            values = np.stack([each for _, each in taken])
            blocks += head_block(values, heads, plan.prompts.clusters_of(ids), about)
    return blocks


def noise_tokens(plan: Plan, made: Units, dtype: str) -> dict[str, Any]:
    """Return per-token metrics of both kinds by prompt `[prompts]`, over all tokens and over the answer's."""
    found: dict[str, Any] = {}
    spans = {prompt.id: prompt.spans.get("answer") for prompt in plan.floor}
    for kind, (suffix, _) in kinds(plan.pair, dtype).items():
        for prompt, unit in made:
            if f"{kind} tokens" not in unit:
                continue
            tokens, answer = unit[f"{kind} tokens"], spans[prompt]
            parts = {"": tokens}
            if answer is not None:
                parts["_answer"] = tokens[:, answer[0] - 1 : answer[1] - 1]
            for where, values in parts.items():
                for name, row in zip(TOKENS, values, strict=True):
                    target = found.setdefault(f"noise_{name}{where}{suffix}", plan.prompts.nothing())
                    target[plan.prompts.place([prompt])] = row.mean()
    return found
