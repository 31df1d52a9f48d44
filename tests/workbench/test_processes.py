"""Captures as processes: killed and resumed, two at a time while somebody reads."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_model import save_small_model

from sparselens.storage.reader import connect
from sparselens.storage.trace import STALE_AFTER

POLICY = "a_shape(sink=2,window=9)"
PROMPTS = "repeats(length=48,n=4)"
TABLES = {
    "prompts": "prompt_id, name, n_tokens",
    "head_stats": "prompt_id, pattern, rows, layer, head, n_rows, entropy, density, kept_mass, write_norm",
    "row_stats": "prompt_id, layer, head, q_pos, entropy, kept_mass, unstored_mass, write_error",
    "edges": "prompt_id, layer, head, q_pos, k_pos, p, p_base, kept, reason",
    "predictions": "prompt_id, pos, nll, top1_id, top1_p",
    "diffs": "prompt_id, scope, rows, layer, head, write_error, kept_mass, js",
    "token_diffs": "prompt_id, pos, kl, nll_change, top1_same",
    "selections": "prompt_id, layer, head, kind, density, data",
    "activations": "prompt_id, hook, layer, head, pos, vector",
}

# Runs a command line that kills itself, without any chance to tidy up, at the given call of a method.
KILLED = """
import os, signal, sys
from sparselens.storage.part import Part
from sparselens.workbench.recorder import Recorder
owner, name, at = {"saw": (Recorder, "saw", %(at)d), "add": (Part, "add", %(at)d),
                   "_commit": (Part, "_commit", %(at)d)}["%(method)s"]
method, count = getattr(owner, name), 0
def dying(self, *args):
    global count
    count += 1
    if count == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return method(self, *args)
setattr(owner, name, dying)
from sparselens.workbench.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_small_model(tmp_path_factory.mktemp("model")))


def arguments(model: str, trace: Path, *, prompts: str = PROMPTS, run: str = "r") -> list[str]:
    return [
        *("capture", model, "--prompts", prompts, "--trace", str(trace)),
        *("--policy", POLICY, "--run", run, "--keep", "qk"),
    ]


def started(*command: str) -> subprocess.Popen[str]:
    """A process of one thread."""
    return subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HOME": str(Path.home())},
    )


def rows(trace: Path, table: str) -> list[tuple[object, ...]]:
    """The rows of a table in a trace, by policy instead of run id."""
    policies = "(SELECT run_id, policy FROM runs)"
    question = f"SELECT policy, {TABLES[table]} FROM {table} JOIN {policies} USING (run_id) ORDER BY ALL"
    if table == "prompts":
        question = f"SELECT {TABLES[table]} FROM prompts ORDER BY ALL"
    elif table in {"diffs", "token_diffs"}:
        question = f"SELECT {TABLES[table]} FROM {table} ORDER BY ALL"
    with connect(trace) as connection:
        return [tuple(map(str, row)) for row in connection.sql(question, max_rows=1_000_000).rows]


@pytest.fixture(scope="module")
def undisturbed(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sparselens.workbench.cli import main

    trace = tmp_path_factory.mktemp("whole") / "trace"
    assert main(arguments(model, trace)) == 0
    return trace


def age(trace: Path) -> None:
    """Let the time pass after which a run that does not beat counts as interrupted."""
    for beat in trace.glob("runs/*/heartbeat.json"):
        said = json.loads(beat.read_text(encoding="utf-8"))
        beat.write_text(json.dumps(said | {"at": said["at"] - STALE_AFTER - 1}), encoding="utf-8")


@pytest.mark.parametrize(
    ("method", "at"),
    [
        ("saw", 7),  # in the policy's run of the second prompt: its base has been run and not written
        ("add", 60),  # between two tables of a layer
        ("_commit", 4),  # the second prompt: in the base's run, not in the policy's
    ],
)
def test_a_killed_capture_resumes_to_the_rows_of_an_undisturbed_one(
    model: str, undisturbed: Path, tmp_path: Path, method: str, at: int
) -> None:
    from sparselens.workbench.cli import main

    trace = tmp_path / "trace"
    process = started("-c", KILLED % {"method": method, "at": at}, *arguments(model, trace))
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    with connect(trace) as connection:  # prompts that are there are there in all tables
        per_table = [
            set(connection.sql(f"SELECT DISTINCT run_id, prompt_id FROM {table}").rows)
            for table in ("head_stats", "edges", "predictions", "row_stats")
        ]
        assert all(found == per_table[0] for found in per_table)
        assert len(per_table[0]) == {("saw", 7): 2, ("add", 60): 2, ("_commit", 4): 3}[method, at]
    assert main([*arguments(model, trace), "--resume"]) == 2  # it may be alive, on another machine
    age(trace)
    assert main([*arguments(model, trace), "--resume"]) == 0
    for table in TABLES:
        assert rows(trace, table) == rows(undisturbed, table), table
    assert not list(trace.rglob(".tmp-*"))
    with connect(trace) as connection:
        assert connection.sql("SELECT DISTINCT status, n_prompts FROM runs").rows == [("complete", 4)]


def halfway(trace: Path, writers: list[subprocess.Popen[str]]) -> int:
    """The edges that are read when the first prompt is there and nobody goes on writing."""
    until = time.monotonic() + 120
    while not any(trace.glob("runs/*/part-*")):
        assert time.monotonic() < until
        time.sleep(0.002)
    for writer in writers:
        writer.send_signal(signal.SIGSTOP)
    try:
        with connect(trace) as connection:
            return int(connection.sql("SELECT count(*) FROM edges").rows[0][0])
    finally:
        for writer in writers:
            writer.send_signal(signal.SIGCONT)


def test_two_captures_write_one_trace_while_a_reader_asks(
    model: str, undisturbed: Path, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    writers = [
        started("-m", "sparselens.workbench.cli", *arguments(model, trace, run=name))
        for name in ("one", "two")
    ]
    seen = [0, halfway(trace, writers)]
    while any(writer.poll() is None for writer in writers):
        if not (trace / "trace.json").exists():
            continue
        time.sleep(0.05)
        with connect(trace) as connection:
            ((edges,),) = connection.sql("SELECT count(*) FROM edges").rows
            halves = connection.sql(
                "SELECT run_id, prompt_id FROM (SELECT DISTINCT run_id, prompt_id FROM predictions) a"
                " FULL JOIN (SELECT DISTINCT run_id, prompt_id FROM head_stats) b USING (run_id, prompt_id)"
                " WHERE a.run_id IS NULL OR b.run_id IS NULL"
            ).rows
        assert halves == []
        assert edges >= seen[-1]  # nothing that was there goes away, not even while parts are merged
        seen.append(edges)
    for writer in writers:
        _, err = writer.communicate(timeout=60)
        assert writer.returncode == 0, err
        assert "lock" not in err.lower()
    with connect(trace) as connection:
        seen.append(connection.sql("SELECT count(*) FROM edges").rows[0][0])
        finished = connection.sql("SELECT name, status, n_prompts FROM runs ORDER BY name").rows
    assert 0 < seen[1] < seen[-1]
    assert len(set(seen)) > 2  # it was read while it was written
    names = [f"{name} {policy}" for name in ("one", "two") for policy in (POLICY, "dense")]
    assert finished == [(name, "complete", 4) for name in names]
    for table in TABLES:
        whole = rows(undisturbed, table)
        expected = whole if table == "prompts" else sorted([*whole, *whole])
        assert sorted(rows(trace, table)) == sorted(expected), table
