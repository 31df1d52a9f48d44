"""The writer killed at every step: whole prompts stay, nothing is half-read, resuming gives the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from sparselens.storage.compact import compact
from sparselens.storage.disk import TraceError
from sparselens.storage.reader import connect
from sparselens.storage.trace import Trace
from sparselens.storage.views_file import ensure_views_file
from sparselens.storage.writer import RunWriter

RUN, PROMPTS = "run-1", ["p1", "p2", "p3"]
ROWS = {"prompts": 1, "tokens": 4, "edges": 6}  # of each prompt


class Killed(BaseException):
    """The process is gone: nothing it would do afterwards happens."""


@contextmanager
def killed_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Let `step` changes to the disk happen, then none; counts them."""
    done: Counter[str] = Counter()

    def wrapped(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def change(*given: Any, **named: Any) -> Any:
            if done.total() >= step:
                raise Killed
            done[name] += 1
            return real(*given, **named)

        return change

    with monkeypatch.context() as patch:
        for name in ("mkdir", "rename", "replace", "fsync", "unlink", "rmdir"):
            patch.setattr(os, name, wrapped(name, getattr(os, name)))
        for name in ("write_bytes", "write_text"):
            patch.setattr(Path, name, wrapped(name, getattr(Path, name)))
        for name in ("__init__", "write_table", "close"):
            patch.setattr(pq.ParquetWriter, name, wrapped(name, getattr(pq.ParquetWriter, name)))
        yield done


def write(path: Path) -> None:
    """Start or resume the run and finish it."""
    trace = Trace.create(path)
    there = {run.run_id: run for run in trace.runs()}
    if RUN in there and there[RUN].status == "complete":
        compact(there[RUN].folder)
        return
    run = RunWriter.resume(trace, RUN) if RUN in there else RunWriter.start(trace, RUN, {"seed": 3})
    for prompt in PROMPTS:
        if prompt in run.finished_prompts():
            continue
        with run.part([prompt]) as part:
            part.add("prompts", {"name": prompt, "n_tokens": 4})
            part.add("tokens", {"pos": range(4), "token_id": [1, 2, 3, int(prompt[1])], "is_special": False})
            edge = {"head": 0, "q_pos": [0, 1, 2], "k_pos": 0, "p": [1.0, 0.5, 0.1], "kept": True}
            for layer in range(2):
                part.add("edges", {"layer": layer, **edge})
    with run.part([]) as part:
        part.add("evals", {"run_id": RUN, "task": "t", "metric": "m", "value": 1.5})
    run.finish()


def contents(query: Callable[[str], list[tuple[Any, ...]]]) -> dict[str, list[tuple[Any, ...]]]:
    """Every row, sorted."""
    return {name: query(f"SELECT * FROM {name} ORDER BY ALL") for name in (*ROWS, "evals", "run_prompts")}


def contents_of(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """The rows as `connect` sees them."""
    with connect(path) as trace:
        return contents(lambda text: trace.sql(text).rows)


def contents_elsewhere(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """The rows as any DuckDB client sees them through trace.duckdb."""
    ensure_views_file(Trace.open(path))
    with duckdb.connect(str(path / "trace.duckdb"), read_only=True) as client:
        client.execute("SET file_search_path = $path", {"path": str(path)})
        return contents(lambda text: client.execute(text).fetchall())


def whole(seen: dict[str, list[tuple[Any, ...]]]) -> set[str]:
    """The prompts that are there; fails unless each has all its rows exactly once."""
    prompts = {row[1] for row in seen["run_prompts"]}
    assert len(seen["run_prompts"]) == len(prompts)
    for name, n in ROWS.items():
        column = 1 if name == "edges" else 0
        assert Counter(row[column] for row in seen[name]) == dict.fromkeys(prompts, n)
    return prompts


pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def _no_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process does not beat: no thread, and what it wrote is stale at once."""
    monkeypatch.setattr("sparselens.storage.writer.BEAT_EVERY", 1e6)
    monkeypatch.setattr("sparselens.storage.trace.STALE_AFTER", -1.0)


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """An empty trace to copy."""
    ensure_views_file(Trace.create(tmp_path / "template"))
    return tmp_path / "template"


def total_steps(path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Changes to the disk that an undisturbed run makes."""
    with killed_at(10**9, monkeypatch) as done:
        write(path)
    assert done["fsync"] > 20
    assert done["rename"] > 4
    return done.total()


_STRIDE = 8
_OFFSETS = [0, *(pytest.param(offset, marks=pytest.mark.slow) for offset in range(1, _STRIDE))]


@pytest.mark.parametrize("offset", _OFFSETS)
def test_killed_at_every_step(
    tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch, offset: int
) -> None:
    undisturbed = Path(shutil.copytree(template, tmp_path / "undisturbed"))
    steps = total_steps(undisturbed, monkeypatch)
    expected = contents_of(undisturbed)
    assert whole(expected) == set(PROMPTS)
    seen_counts = set()
    for step in range(offset, steps, _STRIDE):
        path = Path(shutil.copytree(template, tmp_path / f"killed-{step}"))
        with killed_at(step, monkeypatch), pytest.raises(Killed):
            write(path)
        here = contents_of(path)
        seen_counts.add(len(whole(here)))
        assert contents_elsewhere(path) == here
        write(path)
        assert contents_of(path) == expected
    assert seen_counts == {0, 1, 2, 3}


def test_killed_while_the_trace_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "undisturbed")
    expected = contents_of(tmp_path / "undisturbed")
    for step in (0, 1, 2, 40, 85, 90, 93, 95):
        path = tmp_path / f"killed-{step}"
        with killed_at(step, monkeypatch), pytest.raises(Killed):
            write(path)
        write(path)
        assert contents_of(path) == expected


def test_killed_twice_in_a_row(tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = Path(shutil.copytree(template, tmp_path / "undisturbed"))
    steps = total_steps(undisturbed, monkeypatch)
    expected = contents_of(undisturbed)
    for first, second in ((steps // 3, 5), (steps // 2, 30), (steps - 12, 3)):
        path = Path(shutil.copytree(template, tmp_path / f"killed-{first}"))
        for step in (first, second):
            with killed_at(step, monkeypatch), pytest.raises(Killed):
                write(path)
            whole(contents_of(path))
        write(path)
        assert contents_of(path) == expected


_DYING = """
import os, sys
from sparselens.storage.writer import RunWriter
run = RunWriter.start(sys.argv[1], "run-1")
for prompt in ("p1", "p2"):
    with run.part([prompt]) as part:
        part.add("prompts", {"name": prompt, "n_tokens": 4})
        if prompt == "p2":
            os._exit(9)
"""


def test_a_process_that_dies_leaves_a_run_to_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.run([sys.executable, "-c", _DYING, str(tmp_path / "t")], check=False, cwd=tmp_path)
    assert done.returncode == 9
    monkeypatch.setattr("sparselens.storage.trace.STALE_AFTER", 60.0)
    with pytest.raises(TraceError, match="run run-1 is running: nothing to resume"):
        RunWriter.resume(tmp_path / "t", "run-1")
    monkeypatch.setattr("sparselens.storage.trace.STALE_AFTER", -1.0)
    with RunWriter.resume(tmp_path / "t", "run-1") as run:
        assert run.finished_prompts() == {"p1"}
