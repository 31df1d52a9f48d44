"""Numbers of prompts as rows: of heads, of the model, of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparselens.analyses.interval import Interval, clustered_mean
from sparselens.analyses.measured import Measured, measured
from sparselens.analyses.movers.choice import held_out, right_choices
from sparselens.analyses.movers.plan import Case, Movers, groups_of
from sparselens.kernels.head import head_name

TASK = "movers"
Block = tuple[str, dict[str, Any]]
Numbers = Sequence[Mapping[str, Any]]

DEFINITIONS = {
    "direct": "what the head writes at END along (answer − mean of foils) of the unembedding, past all later layers, "
    "the last norm's scale frozen: in logits, from all source tokens",
    "direct_of": "the part of `direct` that comes from these source tokens",
    "attention_of": "attention of END to these tokens, as executed, summed over them",
    "kept_of": "share of these tokens that the policy keeps for the head at END",
    "choice": "share of prompts in which the head's largest {score} among the options' {place} is the right option's",
}


def head_rows(
    used: Sequence[Case], before: Numbers, after: Numbers, chosen: Movers, layers: int
) -> list[Block]:
    """Return the rows of `head_scores` over the answered prompts.

    `before` under the base, `after` under the policy; where these differ, the base's numbers are `…_base` and the
    paired change is `…_change`.
    """
    groups = [case.group for case in used]
    blocks = []
    now, then = _scores(used, after), _scores(used, before)
    for name, (definition, values) in now.items():
        found = {name: values}
        if chosen.policy != chosen.base and not name.startswith("kept_"):
            found[f"{name}_base"] = then[name][1]
            found[f"{name}_change"] = values - then[name][1]
        blocks += [
            _block(_of(metric, each, groups, chosen, definition), layers) for metric, each in found.items()
        ]
    return blocks


def _scores(used: Sequence[Case], numbers: Numbers) -> dict[str, tuple[str, Any]]:
    """Return definition and values `[prompts, layers · heads]` by metric."""
    parts = list(used[0].sources)
    direct, attention, kept = (
        np.stack([np.asarray(each[name], float) for each in numbers])
        for name in ("direct", "attention", "kept")
    )
    found = {"direct": (DEFINITIONS["direct"], direct.sum(1))}
    for group, places in groups_of(parts).items():
        found[f"direct_{group}"] = (DEFINITIONS["direct_of"], direct[:, places].sum(1))
    for place, part in enumerate(parts):
        found[f"attention_{part}"] = (DEFINITIONS["attention_of"], attention[:, place])
        found[f"kept_{part}"] = (DEFINITIONS["kept_of"], kept[:, place])
    return found


def _of(metric: str, values: Any, groups: Sequence[str], chosen: Movers, definition: str) -> Measured:
    how = {"_base": " (under the base)", "_change": " (policy − base, paired by prompt)"}
    said = next((words for end, words in how.items() if metric.endswith(end)), "")
    return measured(
        metric,
        values,
        groups,
        prompt_set=chosen.prompts,
        rows="span:answer",
        definition=definition + said,
        params={"policy": chosen.policy, "base": chosen.base, "pattern": "executed", "seed": chosen.seed},
    )


def _block(found: Measured, layers: int) -> Block:
    return "head_scores", found.columns(layers)


def choice_rows(
    every: Sequence[Case], before: Numbers, after: Numbers, chosen: Movers, layers: int
) -> tuple[list[Block], dict[str, Interval], dict[str, Any]]:
    """Return the rows of select-and-copy heads over all prompts, the best head's accuracy, and what the record says.

    The head is chosen under the base on some groups, and tested on the others under base and policy.
    """
    groups = [case.group for case in every]
    tested = held_out(groups, chosen.validation, chosen.seed)
    names = [group for group, mine in zip(groups, tested, strict=True) if mine]
    blocks: list[Block] = []
    numbers: dict[str, Interval] = {}
    said: dict[str, Any] = {}
    then, now = ([right_choices(each) for each in side] for side in (before, after))
    for metric in now[0]:
        score, _, place = metric.partition("_accuracy_")
        values, base = (np.stack([each[metric] for each in side]) for side in (now, then))
        words = DEFINITIONS["choice"].format(
            score="q · k before rotary positions" if score == "qk" else "attention",
            place="letters" if place == "label" else "ends of line",
        )
        blocks.append(_block(_of(metric, values, groups, chosen, words), layers))
        best = int(base[~tested].mean(0).argmax())
        heads = base.shape[1] // layers
        said[metric] = {
            "head": head_name(divmod(best, heads)),
            "validation": float(base[~tested, best].mean()),
        }
        numbers[f"{metric}_best"] = clustered_mean(values[tested, best], names)
        if chosen.policy != chosen.base:
            numbers[f"{metric}_best_base"] = clustered_mean(base[tested, best], names)
    return blocks, numbers, said


def model_numbers(
    every: Sequence[Case], before: Numbers, after: Numbers, answered: Any, chosen: Movers
) -> dict[str, Interval]:
    """Return the model's numbers: what is answered, by how much, and what the row that answers still sees."""
    groups = [case.group for case in every]
    found: dict[str, Interval] = {}
    sides = {"": after} if chosen.policy == chosen.base else {"_base": before, "": after}
    for end, numbers in sides.items():
        for metric in ("first_token", "choice"):
            found[f"{metric}{end}"] = clustered_mean([float(each[metric]) for each in numbers], groups)
    for name in dict.fromkeys(groups) if not every[0].labels else ():
        mine = [place for place, group in enumerate(groups) if group == name]
        prompts = [every[place].prompt.id for place in mine]
        found[f"answered_{name}"] = clustered_mean(answered[mine].astype(float), prompts)
    for place, part in enumerate(every[0].sources):
        kept = [float(np.asarray(each["kept"], float)[place].mean()) for each in after]
        seen = [float(np.asarray(each["kept"], float)[place].max() > 0) for each in after]
        found[f"kept_{part}"] = clustered_mean(kept, groups)
        found[f"kept_{part}_any"] = clustered_mean(seen, groups)
    return found


def used_numbers(
    used: Sequence[Case], before: Numbers, after: Numbers, chosen: Movers
) -> dict[str, Interval]:
    """Return the logit difference of the answered prompts, and how much of it the heads write at END themselves."""
    groups = [case.group for case in used]
    parts = groups_of(list(used[0].sources))
    found: dict[str, Interval] = {}
    sides = {"": after} if chosen.policy == chosen.base else {"_base": before, "": after}
    for end, numbers in sides.items():
        found[f"logit_diff{end}"] = clustered_mean([float(each["difference"]) for each in numbers], groups)
        direct = np.stack([np.asarray(each["direct"], float).sum(-1) for each in numbers])
        found[f"direct_heads{end}"] = clustered_mean(direct.sum(-1), groups)
        for group, places in parts.items():
            found[f"direct_heads_{group}{end}"] = clustered_mean(direct[:, places].sum(-1), groups)
    if len(sides) == 2:
        change = [float(b["difference"]) - float(a["difference"]) for a, b in zip(before, after, strict=True)]
        found["logit_diff_change"] = clustered_mean(change, groups)
    return found


def eval_rows(found: Mapping[str, Interval]) -> Block:
    """Return the rows of `evals`."""
    columns: dict[str, Any] = {
        "metric": list(found),
        "value": [each.mean for each in found.values()],
        "n": [each.n for each in found.values()],
        "n_clusters": [each.n_clusters for each in found.values()],
        "ci_low": [each.low for each in found.values()],
        "ci_high": [each.high for each in found.values()],
    }
    return "evals", {"task": TASK, **columns}
