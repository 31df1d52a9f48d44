"""Traces that somebody else made: markup in every text, odd numbers everywhere, files missing, cut or newer.

`write_hostile` fills every table that is declared, so a table that comes later is covered too. `SPOILED` names
what is then done to the folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sparselens.storage.schema import STORED
from sparselens.storage.trace import Trace
from sparselens.storage.writer import RunWriter

MARKUP = (
    '<img src=x onerror="window.injected=1">',
    "<script>window.injected=1</script>",
    "\"><svg onload='window.injected=1'></svg>",
    '<a href="javascript:window.injected=1">a</a><a href="https://elsewhere.example/">b</a>',
    "'; DROP TABLE runs; --",
    "</script></style></textarea><iframe src='javascript:window.injected=1'></iframe>",
    "${window.injected=1} {{7*7}} {0} %s",
    "\x00\u202e\u0000\ud7ff\U0001f9ff\x1b[31m\r\n\t",
    "",
)
ODD = (0.5, float("inf"), -1.0, float("-inf"), 1e30, 0.0, 1e-30)
DENSE, SPARSE = "run-0", "run-1"
KINDS = (
    "roles",
    "restore",
    "ablate",
    "sinks",
    "features",
    "sweep",
    "circuit",
    "fidelity",
    "movers",
    "retrieval",
)
METRICS = ("retrieval", "induction", "previous_token", "answer_nll", "whole_answer", MARKUP[0])
OTHER_TYPES = '{"run_id": 7, "args": 3, "created_at": 5, "folders": [1]}'
TOKENS, LAYERS, HEADS = 12, 2, 2
KNOWN: dict[str, tuple[Any, ...]] = {
    "pattern": ("executed",),
    "rows": ("all", "span:answer", MARKUP[0]),
    "scope": ("end_to_end", "local_mask"),
    "metric": METRICS,
    "run_a": (DENSE,),
    "run_b": (SPARSE,),
    "base_run": (DENSE,),
    "hook": ("blocks.0.attn.hook_rot_q", "blocks.0.attn.hook_rot_k", MARKUP[1]),
    "heads": (["L0H0", MARKUP[0]], []),
    "kind": ("everything", "restore", MARKUP[2]),
    "size": (3,),
    "pool": (4,),
    "data": (b"\xff<script>", json.dumps({"kind": "everything"}).encode(), b""),
    "vector": ([0.5] * 4, [float("inf")] * 4, []),
    "metadata": ("{", "[]", json.dumps({"depth": MARKUP[0]}), "null", MARKUP[1]),
    "params": ("{", "{}", json.dumps({"fold": MARKUP[0]}), MARKUP[1]),
    "record": ("{", "{}", MARKUP[1]),
    "matched": ("layer", MARKUP[0]),
    "order_by": ("write_error", "retrieval", MARKUP[0]),
}


def write_hostile(
    path: Path, *, text: Callable[[int], str] | None = None, tables: tuple[str, ...] = ()
) -> None:
    """A dense and a sparse capture and one result of every kind, with rows in every table (or in some)."""
    said = text or (lambda place: MARKUP[place % len(MARKUP)])
    for number, run_id in enumerate((DENSE, SPARSE)):
        meta = {
            "name": said(number) or "b",
            "policy": said(number + 2),
            "model": said(1),
            "kernel": said(2),
            "dtype": said(4),
            "prompt_set": said(0),
            "parents": [DENSE] if number else [said(1) or "x"],
            "args": {said(0): said(1)},
            "extra": {"n_kv_heads": 2, "x": said(0)},
        }
        run = RunWriter.start(path, run_id, meta)
        with run.part(["prompt-0"]) as part:
            _fill(part, run_id, said, tables, prompts=True)
        run.finish({"verify_kernel": False, "verify_detail": {"why": said(0)}})
    for kind in KINDS:
        meta = {
            "name": said(0),
            "kind": kind,
            "parents": [DENSE, SPARSE],
            "args": {"x": said(0), "layer": said(1)},
        }
        run = RunWriter.start(path, f"run-of-{kind}", meta)
        with run.part([]) as part:
            _fill(part, f"run-of-{kind}", said, tables, prompts=False)
        run.finish({})


def _fill(
    part: Any, run_id: str, said: Callable[[int], str], tables: tuple[str, ...], *, prompts: bool
) -> None:
    for name, table in STORED.items():
        if table.internal or (tables and name not in tables) or (table.writer == "analysis_id") == prompts:
            continue
        part.add(name, {column.name: _values(column, run_id, said, name) for column in table.columns})


def _rows(table: str) -> int:
    return (
        1
        if table == "prompts"
        else TOKENS * 8
        if table in ("edges", "head_stats", "diffs", "row_stats")
        else TOKENS
    )


def _values(column: Any, run_id: str, said: Callable[[int], str], table: str) -> list[Any]:
    """What one column holds: what pages look for where the name says it, else the oddest value of its type."""
    n, name = _rows(table), column.name
    if name == STORED[table].writer:
        return [run_id] * n
    if table == "spans" and name == "name":
        return ["answer", "needle", *(said(place) for place in range(n - 2))]
    where: dict[str, Callable[[int], Any]] = {
        "run_id": lambda place: (DENSE, SPARSE)[place % 2],
        "prompt_id": lambda place: "prompt-0",
        "layer": lambda place: place // HEADS % LAYERS,
        "head": lambda place: place % HEADS,
        "kv_head": lambda place: place % HEADS,
        "head_name": lambda place: f"L{place // HEADS % LAYERS}H{place % HEADS}",
        "n_tokens": lambda place: TOKENS,
    } | dict.fromkeys(
        ("pos", "q_pos", "k_pos", "start", "stop"), lambda place: place // (n // TOKENS) % TOKENS
    )
    if name in where:
        return [where[name](place) for place in range(n)]
    return (
        list(islice(cycle(KNOWN[name]), n))
        if name in KNOWN
        else [_odd(column.type, place, said) for place in range(n)]
    )


def _odd(kind: Any, place: int, said: Callable[[int], str]) -> Any:
    odd: Any = said(place)
    if pa.types.is_list(kind):
        odd = [] if pa.types.is_integer(kind.value_type) else [said(place)]
    elif pa.types.is_floating(kind):
        odd = ODD[place % len(ODD)]
    elif pa.types.is_boolean(kind):
        odd = place % 2 == 0
    elif pa.types.is_integer(kind) or pa.types.is_timestamp(kind):
        odd = place % 5
    elif pa.types.is_binary(kind):
        odd = said(place).encode("utf-8", "replace")
    return odd


def parquet_files(path: Path, *names: str) -> list[Path]:
    """The files of some tables (all when none is named) in every run."""
    found = sorted(path.glob("runs/*/part-*/*.parquet"))
    return [file for file in found if not names or file.stem in names]


def _nothing_but_nan(path: Path) -> None:
    for file in parquet_files(path):
        table = pq.read_table(file)
        for at, field in enumerate(table.schema):
            if pa.types.is_floating(field.type):
                odd = pa.array(
                    np.resize([np.nan, np.inf, -np.inf], len(table)).astype(field.type.to_pandas_dtype())
                )
                table = table.set_column(at, field, odd)
        pq.write_table(table, file)


def _cut(path: Path) -> None:
    for file in parquet_files(path):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _cut_edges(path: Path) -> None:
    for file in parquet_files(path, "edges", "head_stats", "tokens"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _gone(path: Path) -> None:
    for file in parquet_files(path, "edges", "diffs", "predictions"):
        file.unlink()


def _half_written(path: Path) -> None:
    folder = path / "runs" / "run-2"
    (folder / "part-00000").mkdir(parents=True)
    (folder / ".tmp-part-1").mkdir()
    about = json.loads((path / "runs" / DENSE / "manifest.json").read_text())
    (folder / "run.json").write_text(json.dumps(about | {"run_id": "run-2", "name": "half", "folders": None}))
    (folder / "heartbeat.json").write_text("{")
    (folder / "part-00000" / "part.json").write_text(
        '{"prompt_ids": ["p"], "n_tokens": 3, "rows": {"edges": 5}}'
    )
    (folder / "part-00000" / "edges.parquet").write_bytes(b"PAR1\x00\x01")


def _text(place: str, content: str) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        for file in path.glob(place):
            file.write_text(content, encoding="utf-8")

    return spoil


def _newer_run(path: Path) -> None:
    file = path / "runs" / SPARSE / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema_version": 999}))


MADE: dict[str, Callable[[Path], None]] = {
    "markup": write_hostile,
    "long": lambda path: write_hostile(path, text=lambda place: f"{place} " + "W" * 20_000),
    "prompts": lambda path: write_hostile(path, tables=("prompts", "tokens")),
    "scores": lambda path: write_hostile(path, tables=("head_scores",)),
    "empty": lambda path: (Trace.create(path), None)[1],
}
"""How the traces are written that are then copied and spoiled."""

SPOILED: dict[str, tuple[str, Callable[[Path], None] | None]] = {
    "markup everywhere": ("markup", None),
    "very long texts": ("long", None),
    "NaN everywhere": ("markup", _nothing_but_nan),
    "prompts only": ("prompts", None),
    "no prompts": ("scores", None),
    "no runs": ("empty", None),
    "files gone": ("markup", _gone),
    "a run half written": ("markup", _half_written),
    "some files cut": ("markup", _cut_edges),
    "all files cut": ("markup", _cut),
    "newer schema": ("empty", _text("trace.json", '{"format": "sparselens-trace", "schema_version": 999}')),
    "a newer run": ("markup", _newer_run),
    "manifest not JSON": ("markup", _text("runs/run-1/manifest.json", "<script>{")),
    "manifest of other types": ("markup", _text("runs/run-1/manifest.json", OTHER_TYPES)),
    "part.json not JSON": ("markup", _text("runs/run-1/part-*/part.json", "[")),
    "part.json of other types": ("markup", _text("runs/run-1/part-*/part.json", '{"rows": 3}')),
    "trace.json a list": ("empty", _text("trace.json", "[1]")),
    "trace.json with a text": ("empty", _text("trace.json", '{"schema_version": "x"}')),
}
"""Which trace, and what is done to a copy of it."""
