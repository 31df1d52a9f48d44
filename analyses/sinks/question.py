"""`analyse sinks`: where attention is parked, and what a policy does to that. From tables; no model runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sparselens.analyses.analysis import Analysis, Findings, Setting, Shown
from sparselens.analyses.comparison import queries
from sparselens.analyses.runs import carried, find_run
from sparselens.analyses.sinks.change import Pair, changes
from sparselens.analyses.sinks.measure import DEFINITIONS, Measure, Prompts, grid, score_tables
from sparselens.analyses.sinks.profile import base_notes, layer_rows, pair_notes, policy_rows
from sparselens.storage.manifest import RunRecord
from sparselens.storage.reader import Connection, connect
from sparselens.storage.trace import Trace

EDGE = 8
"""A later sink is seen by at least 8 queries and an eighth of the prompt's: near the end, what is local looks so."""


@dataclass(frozen=True)
class Sinks:
    """`epsilon` and `window` as in Sink_1^ε; a later token is a sink where a layer's heads give it `received`.

    `base` is the run that `run` is compared with: where empty, the one that was captured with it, if any.
    """

    run: str = "dense"
    base: str = ""
    epsilon: float = 0.3
    window: int = 64
    received: float = 0.1

    def __post_init__(self) -> None:
        for name in ("epsilon", "received"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"sinks: {name} is a share between 0 and 1, not {getattr(self, name)}")
        if self.window < 1:
            raise ValueError(f"sinks: window is 1 or more rows, not {self.window}")


def find(setting: Setting) -> Findings:
    """Reduce the tables of the run and its base; `ValueError` says what to capture where they are not enough."""
    chosen: Sinks = setting.parameters
    run = setting.trace.run(chosen.run).record
    with connect(setting.trace.path) as connection:
        base = _base(setting, connection, run)
        _require(connection, run, base)
        prompts = _prompts(connection, chosen.run)
        measures = _profile(connection, chosen, prompts)
        if base is not None:
            pair = Pair(
                connection,
                prompts,
                base.run_id,
                run.run_id,
                shape=_shape(measures),
                epsilon=chosen.epsilon,
                received=chosen.received,
                edge=EDGE,
                paired=base.run_id in run.parents,
            )
            measures += changes(pair)
    params = {**asdict(chosen), "edge": EDGE, "policy": run.policy, "pattern": "executed"}
    if base is not None:
        params |= {"base": base.run_id, "base_policy": base.policy}
    tables = score_tables(measures, prompts, json.dumps(params, sort_keys=True))
    record = carried(run)
    parents = [run.run_id, *([] if base is None else [base.run_id])]
    return Findings(tables, record | {"parents": parents, "extra": {"definitions": DEFINITIONS}})


def _base(setting: Setting, connection: Connection, run: RunRecord) -> RunRecord | None:
    """Return the run to compare with; `ValueError` where it is the run itself or of other weights."""
    name = setting.parameters.base or next(iter(run.parents), "")
    if not name:
        return None
    base = setting.trace.run(find_run(connection, name)["run_id"]).record
    if base.run_id == run.run_id:
        raise ValueError(f"sinks: base {base.name!r} is the run itself: give another one")
    if (base.weight_hash, base.tokenizer_hash) != (run.weight_hash, run.tokenizer_hash):
        raise ValueError(
            f"sinks: base {base.name!r} ran other weights or another tokenizer than {run.name!r}"
        )
    return base


_TABLES = ("row_stats", "token_stats", "value_norms")
_PAIRED = ("predictions", "selections", "edges", "token_diffs")


def _require(connection: Connection, run: RunRecord, base: RunRecord | None) -> None:
    """Raise `ValueError` where the runs lack tables, or did not record every head."""
    for each in [run] if base is None else [run, base]:
        if each.args.get("heads"):
            raise ValueError(
                f"run {each.name} recorded single heads only ({', '.join(each.args['heads'])}), and sinks are of whole"
                f" layers: {_capture(run, base)} without --heads"
            )
    given = {"run": run.run_id, "base": "" if base is None else base.run_id}
    found = connection.sql(queries("sinks/sinks.sql")["there"], given, max_rows=None).rows
    needed: dict[str, tuple[str, ...]] = {run.run_id: _TABLES if base is None else (*_TABLES, *_PAIRED)}
    if base is not None:
        needed[base.run_id] = (*_TABLES, "predictions")
    for run_id, tables in needed.items():
        missing = [name for name in tables if (run_id, name) not in found]
        if missing:
            name = run.name if run_id == run.run_id else base and base.name
            raise ValueError(f"run {name} has nothing in {', '.join(missing)}: {_capture(run, base)} again")


def _capture(run: RunRecord, base: RunRecord | None) -> str:
    """Return the command that captures the run, and its base in one go."""
    words = f"sparselens capture {run.model or 'MODEL'} --prompts …"
    if base is None:
        return f"`{words} --base '{run.policy}'`"
    return f"`{words} --base '{base.policy}' --policy '{run.policy}'`"


def _prompts(connection: Connection, run: str) -> Prompts:
    """Return the prompts of a run."""
    table = connection.sql(queries("sinks/sinks.sql")["prompts"], {"run": run}, max_rows=None).arrow()
    return Prompts(*(table[name].to_pylist() for name in ("prompt_id", "cluster", "prompt_set", "n_tokens")))


def _profile(connection: Connection, chosen: Sinks, prompts: Prompts) -> list[Measure]:
    """Return the measures of one run: rate, drain, residual peak, later sinks; `ValueError` where prompts are short."""

    def ask(name: str) -> Any:
        text = queries("sinks/sinks.sql")[name]
        given = asdict(chosen) | {"edge": EDGE}
        used = {key: value for key, value in given.items() if f"${key}" in text}
        return connection.sql(text, used, max_rows=None).arrow()

    alphas, drains, peaks = ask("alphas"), ask("drains"), ask("peaks")
    if not len(alphas):
        raise ValueError(
            f"run {chosen.run} has no prompt of {chosen.window} tokens, the longest has {max(prompts.lengths)}: capture"
            f" longer prompts, such as --prompts 'prose(length={chosen.window},n=32)', or say sinks(window=…)"
        )
    shape = tuple(
        max(table[name].to_numpy().max() for table in (alphas, drains)) + 1 for name in ("layer", "head")
    )
    alpha = grid(alphas, "alpha", prompts, shape)
    above = np.where(np.isnan(alpha), np.nan, alpha > chosen.epsilon)
    drain = Measure("value_drain", grid(drains, "drain", prompts, shape))
    found = [*drain.levels()]
    for name, values in (("sink_rate", above), ("sink_alpha", alpha)):
        found += Measure(name, values).levels()[1:]  # of a single head `roles` says it, on windows of prose
    names = peaks.column_names[2:]
    return found + [
        level for name in names for level in Measure(name, grid(peaks, name, prompts, shape[:1])).levels()
    ]


def _shape(measures: list[Measure]) -> tuple[int, int]:
    """Return layers and heads."""
    layers, heads = next(each.values.shape[1:] for each in measures if each.values.ndim == 3)
    return layers, heads


def cost(setting: Setting) -> str:
    """Return what the analysis will read."""
    run = setting.trace.run(setting.parameters.run)
    return f"tables of {run.record.name} ({run.run_id}), {len(run.prompt_ids)} prompts"


def show(trace: Trace, analysis_id: str, options: Mapping[str, Any]) -> Shown:
    """Return a row a layer, and for a run with a base a row a policy; notes on phases, later sinks, where mass went."""
    record = trace.run(analysis_id).record
    top = int(options.get("top", 5))
    with connect(trace.path) as connection:
        layers = layer_rows(connection, analysis_id)
        notes = base_notes(connection, record, layers, edge=EDGE, top=top)
        if len(record.parents) < 2:
            return Shown(layers, notes)
        notes += pair_notes(connection, record, layers, edge=EDGE, top=top)
        return Shown(policy_rows(connection, record), notes)


ANALYSIS = Analysis(
    name="sinks",
    question="in which layers is attention parked on the first token or another one, what is written there, and what "
    "does a policy do to it?",
    parameters=Sinks,
    find=find,
    cost=cost,
    show=show,
    needs_model=False,
)
