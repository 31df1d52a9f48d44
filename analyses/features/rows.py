"""Numbers of single prompts as rows of the feature tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sparselens.storage.trace import Run, Trace

if TYPE_CHECKING:
    from sparselens.workbench.prompt import Prompt
    from sparselens.workbench.sae import Sae

Unit = tuple["Prompt", Mapping[str, Any]]
Block = tuple[str, dict[str, Any]]

DEFINITIONS = {
    "jaccard": "mean over compared tokens of features active in both ÷ active in either",
    "dropped": "sum over tokens where the feature is active in A of the part of A's pre-activation, with A's pattern,"
    " that comes from keys B drops",
    "compared": "a token is compared where the SAE's relative error in B is at most 1.25 times that in A; the first"
    " token never is",
}


def pair_of(trace: Trace, run: str, base: str) -> tuple[Run, Run]:
    """Return a captured run and the base it is compared with: its own unless `base` names another.

    Raises `ValueError` where the run was captured without a base and none is given, and on other weights.
    """
    found = trace.run(run)
    name = base or next(iter(found.record.parents), "")
    if not name:
        raise ValueError(f"run {found.record.name} was captured without a base: give base=…")
    other = trace.run(name)
    if other.run_id == found.run_id:
        raise ValueError(f"base {other.record.name!r} is the run itself: give another one")
    if (other.record.weight_hash, other.record.tokenizer_hash) != (
        found.record.weight_hash,
        found.record.tokenizer_hash,
    ):
        raise ValueError(
            f"{other.record.name} ran other weights or another tokenizer than {found.record.name}"
        )
    return found, other


def short(sae: Sae) -> str:
    """Return how rows name an SAE: the beginning of the hash of its weights, or its name on the hub."""
    return (sae.weight_hash or sae.name)[:16]


def sae_row(sae: Sae) -> dict[str, Any]:
    """Return the row of `saes`."""
    return {
        "sae": [short(sae)],
        "layer": [sae.site.layer],
        "name": [sae.name],
        "hook": [sae.site.name],
        "architecture": [sae.architecture],
        "features": [sae.features],
        "record": [json.dumps(sae.record, sort_keys=True)],
    }


def run_rows(units: Sequence[Unit], side: str, sae: Sae, run_id: str, compared: str) -> list[Block]:
    """Return the rows of `feature_tokens`, `features` and `feature_sources` of a run, as `compared` is looked at."""
    blocks: list[Block] = []
    for prompt, numbers in units:
        about = {"run_id": run_id, "prompt_id": prompt.id, "sae": short(sae)}
        tokens: np.ndarray = np.arange(len(prompt), dtype=np.uint32)
        names = ("n_active", "activation_sum", "unstored_sum", "norm", "error")
        blocks.append(
            ("feature_tokens", about | {"pos": tokens} | {name: numbers[f"{side}_{name}"] for name in names})
        )
        top = {name: numbers[f"{side}_top_{name}"] for name in ("pos", "feature", "activation")}
        blocks.append(("features", about | top))
        if f"{side}_source_pos" in numbers:
            columns = ("pos", "feature", "head", "k_pos", "value", "dropped", "pre", "unstored")
            parts = {name: numbers[f"{side}_source_{name}"] for name in columns}
            blocks.append(("feature_sources", about | {"run_b": compared} | parts))
    return blocks


def diff_rows(units: Sequence[Unit], sae: Sae, base_id: str, run_id: str) -> list[Block]:
    """Return the rows of `feature_diffs`, a prompt and set of rows each, and of `feature_changes` over all prompts."""
    pair = {"run_a": base_id, "run_b": run_id, "sae": short(sae)}
    blocks: list[Block] = []
    totals: dict[str, dict[str, Any]] = {}
    for prompt, numbers in units:
        for key, value in numbers.items():
            kind, _, rest = key.partition("|")
            rows, _, name = rest.rpartition("|")
            if kind == "change":
                total = totals.setdefault(rows, {})
                total[name] = total[name] + value if name in total else value
        names = [key.split("|")[1] for key in numbers if key.startswith("diff|") and key.endswith("|n_rows")]
        for rows in names:
            found = {
                key.rpartition("|")[2]: [value.item()]
                for key, value in numbers.items()
                if key.startswith(f"diff|{rows}|")
            }
            blocks.append(("feature_diffs", pair | {"prompt_id": prompt.id, "rows": rows} | found))
    for rows, total in totals.items():
        active = (total["n_a"] > 0) | (total["n_b"] > 0)
        kept = {name: values[active] for name, values in total.items()}
        about = pair | {"rows": rows, "feature": np.flatnonzero(active).astype(np.uint32)}
        blocks.append(("feature_changes", about | kept))
    return blocks
