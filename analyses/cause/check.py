"""The one-pass estimate against exact interventions: whether heads are worth what one backward pass says.

On some tested prompts every head is estimated; the heads of largest estimate and as many others, drawn at random, are
given back one at a time. What is compared is the change of the answer's loss, prompt by prompt.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr

from sparselens.analyses.cause.estimate import Estimate, estimate
from sparselens.analyses.cause.plan import cluster
from sparselens.analyses.cause.run import Study, Tested
from sparselens.analyses.interval import bounds, resamples
from sparselens.analyses.measured import measured
from sparselens.analyses.stage import Stage
from sparselens.kernels.head import Head
from sparselens.workbench.intervention import Rows, intervention
from sparselens.workbench.prompt import Prompt

CHECKED = 20
"""Heads of largest estimate that are given back one at a time, and as many others."""
KEPT_PAIRS = 64
"""Row-key pairs a prompt that are stored, the largest of all heads."""

DEFINITIONS = {
    "restore_estimate": "predicted change of the answer's loss (nats a token) by run_dense of the head alone, from one "
    "backward pass: Σ ∂loss/∂A · (dense A − executed A); below 0, giving the head back helps",
    "restore_exact": "measured change of the answer's loss (nats a token) by run_dense of the head alone, the others "
    "as the policy has them",
}


def checked(study: Study, parts: Sequence[Tested]) -> tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]:
    """Return what the record says of the comparison, and the rows of `head_scores`, `evals` and `estimates`."""
    prompts = _sample([list(part.fold.tested) for part in parts], study.chosen.check)
    guesses = [_estimated(study, prompt) for prompt in prompts]
    heads = _heads([found["heads"] for found in guesses], study.session.n_heads, study.chosen.seed)
    exact = np.stack([_exact(study, prompt, heads) for prompt in prompts])  # [prompts, heads]
    index = [layer * study.session.n_heads + head for layer, head in heads]
    guessed = np.stack([found["heads"] for found in guesses])
    rows = [
        _scores(study, prompts, "restore_estimate", guessed, None),
        _scores(study, prompts, "restore_exact", exact, heads),
        _evals(prompts, guessed[:, index], exact),
        _pairs(study, prompts, guesses),
    ]
    pearson = pearsonr(guessed[:, index].mean(0), exact.mean(0)).statistic
    spearman = spearmanr(guessed[:, index].mean(0), exact.mean(0)).statistic
    words = (
        f"one-pass estimate against exact single-head run_dense, {len(heads)} heads on {len(prompts)} prompts:"
        f" Pearson {pearson:.2f}, Spearman {spearman:.2f} of means over prompts"
    )
    said = {
        "pearson": float(pearson),
        "spearman": float(spearman),
        "n_heads": len(heads),
        "n_prompts": len(prompts),
    }
    return {"estimate": {**said, "words": words}}, rows


def _sample(parts: Sequence[list[Prompt]], n: int) -> list[Prompt]:
    """Return `n` prompts, in turn from every fold, group after group."""
    by_group: dict[str, list[Prompt]] = {}
    for prompt in [prompt for part in parts for prompt in part]:
        by_group.setdefault(cluster(prompt), []).append(prompt)
    turns = [turn for number in range(max(map(len, by_group.values()))) for turn in _turn(by_group, number)]
    return turns[:n]


def _turn(by_group: dict[str, list[Prompt]], number: int) -> list[Prompt]:
    return [group[number] for group in by_group.values() if number < len(group)]


def _estimated(study: Study, prompt: Prompt) -> dict[str, Any]:
    """Return the estimates of a prompt, kept in the ledger."""
    study.bar.says(f"estimate · {prompt.name}")

    def compute() -> dict[str, Any]:
        found: Estimate = estimate(study.session, prompt, study.under, study.kernel)
        return {
            "heads": found.heads.flatten().numpy(),
            "pair_rows": found.pair_rows.flatten(0, 1).numpy(),
            "pair_keys": found.pair_keys.flatten(0, 1).numpy(),
            "pair_values": found.pair_values.flatten(0, 1).numpy(),
        }

    return study.ledger.once(f"estimate {study.under} {prompt.id}", compute)


def _heads(guesses: Sequence[Any], heads: int, seed: int) -> list[Head]:
    """Return the heads of largest mean estimate, and as many drawn from the others."""
    order = np.argsort(-np.abs(np.mean(guesses, axis=0)), kind="stable").tolist()
    rest = order[CHECKED:]
    others = random.Random(f"check {seed}").sample(rest, min(CHECKED, len(rest)))
    return [divmod(int(at), heads) for at in [*order[:CHECKED], *others]]


def _exact(study: Study, prompt: Prompt, heads: Sequence[Head]) -> Any:
    """Return the measured change of the loss by giving each head back alone: `[heads]`."""
    stage = Stage(study.session, prompt, study.under, study.kernel)

    def compute() -> dict[str, Any]:
        before = stage.plain()[0]
        found = []
        for layer, head in heads:
            study.bar.says(f"L{layer}H{head} alone · {prompt.name}")
            edit = intervention("run_dense", [(layer, head)], Rows(), study.kernel)
            found.append(stage.tried(edit, layer)[0] - before)
        return {"change": np.array(found)}

    return study.ledger.once(f"alone {study.under} {heads} {prompt.id}", compute)["change"]


def _scores(
    study: Study, prompts: Sequence[Prompt], metric: str, values: Any, heads: Sequence[Head] | None
) -> tuple[str, dict[str, Any]]:
    """Return the rows of `head_scores` of all heads, or of some."""
    found = measured(
        metric,
        values,
        [cluster(prompt) for prompt in prompts],
        prompt_set=study.chosen.prompts,
        rows="span:answer",
        definition=DEFINITIONS[metric],
        params={"policy": str(study.under), "base": study.chosen.base},
    )
    if heads is None:
        return "head_scores", found.columns(study.session.n_layers)
    columns = found.columns(1)
    columns["layer"] = np.array([layer for layer, _ in heads], np.uint8)
    columns["head"] = np.array([head for _, head in heads], np.uint16)
    return "head_scores", columns


def _evals(prompts: Sequence[Prompt], guessed: Any, exact: Any) -> tuple[str, dict[str, Any]]:
    """Return both correlations of the means over prompts, with intervals over groups."""
    times = resamples([cluster(prompt) for prompt in prompts])
    total = times.sum(1, keepdims=True)
    means = (times @ guessed) / total, (times @ exact) / total
    made: dict[str, list[Any]] = {name: [] for name in ("metric", "value", "ci_low", "ci_high")}
    for name, of in (("pearson", pearsonr), ("spearman", spearmanr)):
        draws = (
            np.array([of(a, b).statistic for a, b in zip(*means, strict=True)])
            if np.isfinite(means[0]).all()
            else np.full(len(times), np.nan)
        )
        low, high = bounds(draws)
        value = float(of(guessed.mean(0), exact.mean(0)).statistic)
        for column, cell in zip(made, (f"estimate_{name}", value, low, high), strict=True):
            made[column].append(cell)
    groups = {cluster(prompt) for prompt in prompts}
    return "evals", {"task": "restore", **made, "n": len(prompts), "n_clusters": len(groups)}


def _pairs(study: Study, prompts: Sequence[Prompt], guesses: Sequence[Any]) -> tuple[str, dict[str, Any]]:
    """Return the strongest row-key pairs of every prompt."""
    columns: dict[str, list[Any]] = {
        name: [] for name in ("prompt_id", "layer", "head", "q_pos", "k_pos", "value", "head_value")
    }
    for prompt, found in zip(prompts, guesses, strict=True):
        size = np.abs(found["pair_values"])
        for flat in np.sort(np.argsort(-size, axis=None, kind="stable")[:KEPT_PAIRS]).tolist():
            number, at = divmod(flat, size.shape[1])
            layer, head = divmod(number, study.session.n_heads)
            row = (
                prompt.id,
                layer,
                head,
                int(found["pair_rows"][number, at]),
                int(found["pair_keys"][number, at]),
                float(found["pair_values"][number, at]),
                float(found["heads"][number]),
            )
            for name, cell in zip(columns, row, strict=True):
                columns[name].append(cell)
    return "estimates", columns
