"""What is left of induction, previous- and duplicate-token scores: from `roles` under base and policy, if there."""

from __future__ import annotations

import json
import shlex
from typing import Any

import numpy as np

from sparselens.analyses.fidelity.pair import Pair
from sparselens.analyses.fidelity.retained import LEAST
from sparselens.analyses.fidelity.table import Block
from sparselens.storage.reader import Connection
from sparselens.storage.trace import Run, Trace

_BRIEF = {"parts": ["repeats"]}
"""Arguments that measure these three scores and nothing else."""


def role_blocks(trace: Trace, connection: Connection, pair: Pair) -> tuple[list[Block], list[str]]:
    """Return `head_scores` `retained_METRIC` of both `roles` results; the commands that would make them, if missing."""
    found = {side: _results(trace, run) for side, run in (("base", pair.base), ("run", pair.run))}
    both = [args for args in found["base"] if args in found["run"]]
    if not both:
        return [], _commands(trace, pair, found)
    args = both[-1]
    base, run = (found[side][args] for side in ("base", "run"))
    before, after = (
        {
            (row["metric"], row["layer"], row["head"]): row
            for row in pair.ask(connection, "roles", analysis=each).to_pylist()
        }
        for each in (base.run_id, run.run_id)
    )
    rows = [
        row | {"value": after[key]["value"] / row["value"], "metric": f"retained_{row['metric']}"}
        for key, row in before.items()
        if key in after and row["value"] > LEAST
    ]
    if not rows:
        return [], []
    params = pair.params | {"roles": json.loads(args), "of": [base.run_id, run.run_id], "least": LEAST}
    about = {
        "definition": [_definition(row["metric"]) for row in rows],
        "params": json.dumps(params, sort_keys=True),
        "ci_low": np.full(len(rows), np.nan),
        "ci_high": np.full(len(rows), np.nan),
    }
    return [("head_scores", {name: [row[name] for row in rows] for name in rows[0]} | about)], []


def _definition(metric: str) -> str:
    name = metric.removeprefix("retained_")
    return (
        f"`{name}` under the policy ÷ under the base, as `roles` measured both with the same arguments; heads with more"
        f" than {LEAST:g} under the base; no interval, roles stores no number of single prompts"
    )


def _results(trace: Trace, about: Run) -> dict[str, Run]:
    """Return the newest complete `roles` results on a run's weights under its policy, by their other arguments."""
    wanted = about.record
    same = ("weight_hash", "tokenizer_hash", "dtype", "policy", "policy_hash")
    return {
        _others(run.record.args): run
        for run in trace.runs()
        if run.record.kind == "analysis"
        and run.record.name == "roles"
        and run.status == "complete"
        and all(getattr(run.record, name) == getattr(wanted, name) for name in same)
    }


def _others(args: dict[str, Any]) -> str:
    """Return the arguments but for the policy, as text."""
    return json.dumps({name: value for name, value in args.items() if name != "policy"}, sort_keys=True)


def _commands(trace: Trace, pair: Pair, found: dict[str, dict[str, Run]]) -> list[str]:
    """Return the commands that measure roles under base and policy alike; one of them where the other is there."""
    there = next((args for side in found.values() for args in reversed(side)), None)
    call = _call(_BRIEF if there is None else json.loads(there))
    return [
        shlex.join(_command(call, run, trace))
        for side, run in (("base", pair.base), ("run", pair.run))
        if there is None or there not in found[side]
    ]


def _command(call: str, run: Run, trace: Trace) -> list[str]:
    model, policy = str(run.record.model), str(run.record.policy)
    return ["sparselens", "analyse", call, "--model", model, "--policy", policy, "--trace", str(trace.path)]


def _call(args: dict[str, Any]) -> str:
    """Return the call of `roles` with these arguments, defaults left out."""
    from sparselens.analyses.roles.plan import Roles

    plain = json.loads(_others(vars(Roles())))
    said = [f"{name}={json.dumps(value)}" for name, value in args.items() if plain.get(name) != value]
    return f"roles({','.join(said)})" if said else "roles"
