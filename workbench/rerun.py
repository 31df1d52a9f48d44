"""Repeat a captured run from its record and say by how much it comes out different.

The model is loaded again and must have the same weights and tokenizer; the prompts are the trace's own token
ids; policy, base, kernel, seed and options are the record's. The repetition is written into a scratch trace
and thrown away.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparselens.workbench.prompt import Prompt
from sparselens.workbench.recorded import recorded_policy, recorded_session

if TYPE_CHECKING:
    from sparselens.storage.reader import Connection
    from sparselens.storage.trace import Run, Trace

COMPARED = {
    "predictions": (("prompt_id", "pos"), ("nll", "top1_p")),
    "head_stats": (
        ("prompt_id", "pattern", "rows", "layer", "head"),
        ("entropy", "sink_mass", "local_mass", "density", "kept_mass", "write_norm"),
    ),
    "diffs": (("prompt_id", "scope", "rows", "layer", "head"), ("write_error", "kept_mass", "js")),
}
"""Table: the columns that name a row, and the numbers that must come out again."""


@dataclass(frozen=True)
class Difference:
    """How far one column of the repetition is from the run: `rows` compared, `missing` in one of the two."""

    table: str
    column: str
    rows: int
    missing: int
    largest: float

    def row(self) -> dict[str, Any]:
        """The difference as a table's row."""
        return {
            "table": self.table,
            "column": self.column,
            "rows": self.rows,
            "missing": self.missing,
            "largest": self.largest,
            "equal": self.missing == 0 and self.largest == 0.0,
        }


def rerun(trace: str | Path, run: str, *, model: str | None = None) -> list[Difference]:
    """Repeat `run` of `trace` and compare every number; `model` says where its weights lie now, if elsewhere.

    Raises ValueError when the run is no capture, when it has no complete prompt, and when the model found is
    not the recorded one.
    """
    from sparselens.storage.reader import connect
    from sparselens.storage.trace import Trace
    from sparselens.workbench.capture import capture

    opened = Trace.open(trace)
    recorded = opened.run(run)
    if recorded.record.kind != "capture":
        raise ValueError(f"{run!r} is a run of kind {recorded.record.kind}; only captures can be repeated")
    if not recorded.prompt_ids:
        raise ValueError(f"{run!r} has no complete prompt to repeat")
    session = recorded_session(recorded, model)
    base = opened.run(recorded.record.parents[0]) if recorded.record.parents else None
    with connect(trace) as before, tempfile.TemporaryDirectory(prefix="sparselens-rerun-") as scratch:
        prompts = stored_prompts(before, recorded)
        with _threads(recorded.record.threads):
            handles = capture(
                session,
                prompts,
                [] if _is_base(opened, recorded) else [recorded_policy(recorded)],
                scratch,
                base=recorded_policy(base or recorded) if base or _is_base(opened, recorded) else None,
                progress=False,
                **_options(recorded),
            )
        with connect(scratch) as after:
            return list(_compare(before, recorded.run_id, after, handles[-1].run_id))


def stored_prompts(opened: Connection, run: Run) -> list[Prompt]:
    """The prompts of a run as they were captured, from the trace alone."""
    return [_stored_prompt(opened, prompt_id) for prompt_id in run.prompt_ids]


def _stored_prompt(opened: Connection, prompt_id: str) -> Prompt:
    row = _one(opened, "SELECT * FROM prompts WHERE prompt_id = $id", prompt_id)
    tokens = opened.sql(
        "SELECT token_id, text, is_special FROM tokens WHERE prompt_id = $id ORDER BY pos",
        {"id": prompt_id},
        max_rows=None,
    ).rows
    spans = opened.sql("SELECT name, start, stop FROM spans WHERE prompt_id = $id", {"id": prompt_id}).rows
    if not tokens or any(text is None for _, text, _ in tokens):
        raise ValueError(f"prompt {row['name']} was stripped of its text; its run cannot be repeated")
    return Prompt(
        id=prompt_id,
        name=row["name"],
        token_ids=tuple(token for token, _, _ in tokens),
        spans={name: (start, stop) for name, start, stop in spans},
        prompt_set=row["prompt_set"],
        group=row["grp"],
        pair_id=row["pair_id"],
        answer_ids=tuple(row["answer_ids"] or ()),
        foils=tuple(row["foil_ids"] or ()),
        bos_mode=row["bos_mode"],
        template=row["template"],
        metadata=json.loads(row["metadata"] or "{}"),
        pieces=tuple(text for _, text, _ in tokens),
        special=tuple(special for _, _, special in tokens),
    )


def _one(opened: Connection, text: str, prompt_id: str) -> dict[str, Any]:
    found = opened.sql(text, {"id": prompt_id})
    if not found.rows:
        raise ValueError(f"the trace has no prompt {prompt_id}")
    return dict(zip(found.columns, found.rows[0], strict=True))


def _is_base(trace: Trace, run: Run) -> bool:
    """Whether a run was the base of its capture: then it is repeated as one."""
    others = trace.runs()
    return not run.record.parents and any(run.run_id in other.record.parents for other in others)


def _options(run: Run) -> dict[str, Any]:
    """The options of `capture` that a record keeps, without the user's own metrics and the checks."""
    kept = ("kernel", "keep", "generate", "heads", "layers", "seed", "decode")
    options = {name: run.record.args[name] for name in kept if name in run.record.args}
    return {name: value for name, value in options.items() if value not in ([], ())}


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Torch with the recorded number of threads: sums in another order differ in the last digits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _compare(before: Connection, old: str, after: Connection, new: str) -> Iterator[Difference]:
    """The largest absolute difference of every compared number, rows joined by what names them."""
    for table, (keys, columns) in COMPARED.items():
        first, second = (
            _rows(opened, table, run, keys, columns) for opened, run in ((before, old), (after, new))
        )
        if first.empty and second.empty:
            continue
        joined = first.merge(second, on=list(keys), how="outer", suffixes=("_a", "_b"), indicator="side")
        missing = int((joined["side"] != "both").sum())
        for column in columns:
            change = (joined[f"{column}_a"] - joined[f"{column}_b"]).abs()
            if change.notna().any():
                yield Difference(table, column, int(change.notna().sum()), missing, float(change.max()))


def _rows(opened: Connection, table: str, run: str, keys: tuple[str, ...], columns: tuple[str, ...]) -> Any:
    owner = "run_b" if table == "diffs" else "run_id"
    text = f"SELECT {', '.join((*keys, *columns))} FROM {table} WHERE {owner} = $run"
    return opened.sql(text, {"run": run}, max_rows=None, timeout=600.0).df()
